"""Diffusion processes: frozen dataclasses, pytrees of numbers, that map a time to a `Level`.

A process is called with a time and answers `Level(t, alpha, sigma)`; `time(lam)` is its inverse in
lam = log(alpha / sigma); `sde(t)` answers the coefficients (f, g) of dx = f x dt + g dw. Since a process applies to
an array of times, `process(ts)` with decreasing `ts` is a grid to sample on. Numbers may be arrays and may be learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import Level, safe_log

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "Discrete",
    "Flow",
    "Learned",
    "Process",
    "Shifted",
    "Sigmoid",
    "SubVP",
]


class Process(Protocol):
    """What every process answers."""

    def __call__(self, t: Array) -> Level:
        """The level at time t."""
        ...

    def time(self, lam: Array) -> Array:
        """The time at which log(alpha / sigma) = lam."""
        ...

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of the forward SDE dx = f x dt + g dw at time t."""
        ...


class _Differentiated:
    """`sde` by differentiating alpha and sigma: f = alpha'/alpha, g^2 = (sigma^2)' - 2 f sigma^2."""

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of dx = f x dt + g dw at a time t between the ends (Song et al. 2020, arXiv:2011.13456, eq. 5)."""
        t = _float(t)
        level, slope = jax.jvp(self, (t,), (jnp.ones_like(t),))  # type: ignore[arg-type]
        f = slope.alpha / level.alpha
        return f, jnp.sqrt(2 * level.sigma * (slope.sigma - f * level.sigma))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VP:
    """Variance preserving, beta(t) linear on t in [0, 1] (Song et al. 2020, arXiv:2011.13456, eq. 32-33).

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
    """

    beta_min: float | Array = 0.1
    beta_max: float | Array = 20.0

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        log_alpha = self._log_alpha(t)
        return Level(t, jnp.exp(log_alpha), _sqrt(-jnp.expm1(2 * log_alpha)))

    def time(self, lam: Array) -> Array:
        return self._time_of_log_alpha(-0.5 * jax.nn.softplus(-2 * _float(lam)))

    def sde(self, t: Array) -> tuple[Array, Array]:
        beta = self._beta(t)
        return -0.5 * beta, jnp.sqrt(beta)

    def _log_alpha(self, t: Array) -> Array:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _beta(self, t: Array) -> Array:
        return self.beta_min + _float(t) * (self.beta_max - self.beta_min)

    def _time_of_log_alpha(self, log_alpha: Array) -> Array:
        # The positive root of a quadratic, in the form that does not cancel near t = 0.
        return (
            -4
            * log_alpha
            / (self.beta_min + jnp.sqrt(self.beta_min**2 - 4 * (self.beta_max - self.beta_min) * log_alpha))
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving: alpha of VP, sigma = 1 - alpha^2 (Song et al. 2020, eq. 29 and 33)."""

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        log_alpha = self._log_alpha(t)
        return Level(t, jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha))

    def time(self, lam: Array) -> Array:
        # sigma / alpha = 1/alpha - alpha = 2 sinh(-log alpha)
        return self._time_of_log_alpha(-jnp.arcsinh(0.5 * jnp.exp(-_float(lam))))

    def sde(self, t: Array) -> tuple[Array, Array]:
        beta, sigma = self._beta(t), self(t).sigma
        return -0.5 * beta, jnp.sqrt(beta * sigma * (2 - sigma))  # 1 - alpha^4 = sigma (2 - sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VE:
    """Variance exploding: alpha = 1, sigma geometric on t in [0, 1] (Song et al. 2020, eq. 30-31).

    Attributes:
        sigma_min: noise at t = 0.
        sigma_max: noise at t = 1.
    """

    sigma_min: float | Array = 0.01
    sigma_max: float | Array = 50.0

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        return Level(t, jnp.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t)

    def time(self, lam: Array) -> Array:
        return -(_float(lam) + jnp.log(self.sigma_min)) / self._log_ratio()

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = _float(t)
        return jnp.zeros_like(t), self(t).sigma * jnp.sqrt(2 * self._log_ratio())

    def _log_ratio(self) -> Array:
        return jnp.log(self.sigma_max / self.sigma_min)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma = t (Karras et al. 2022, arXiv:2206.00364, table 1): the time is the noise."""

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        return Level(t, jnp.ones_like(t), t)

    def time(self, lam: Array) -> Array:
        return jnp.exp(-_float(lam))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = _float(t)
        return jnp.zeros_like(t), jnp.sqrt(2 * t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow:
    """Flow matching and rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022, arXiv:2209.03003, eq. 1).

    Data is at t = 0, noise at t = 1.
    """

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        return Level(t, 1 - t, t)

    def time(self, lam: Array) -> Array:
        return jax.nn.sigmoid(-_float(lam))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = _float(t)
        return -1 / (1 - t), jnp.sqrt(2 * t / (1 - t))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans and Ho 2022, arXiv:2202.00512, section 2)."""

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        return Level(t, jnp.sin(0.5 * pi * (1 - t)), jnp.sin(0.5 * pi * t))  # sin for both: exactly 0 at the ends

    def time(self, lam: Array) -> Array:
        lam = _float(lam)
        angle = jnp.arctan(jnp.exp(-jnp.abs(lam)))  # of the smaller end over the larger: no inf whose gradient is NaN
        return 2 / pi * jnp.where(lam > 0, angle, 0.5 * pi - angle)

    def sde(self, t: Array) -> tuple[Array, Array]:
        level = self(t)
        tan = level.sigma / level.alpha
        return -0.5 * pi * tan, jnp.sqrt(pi * tan)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sigmoid:
    """alpha^2 a segment of the logistic curve, rescaled to run from 1 to 0 (Chen 2023, arXiv:2301.10972, alg. 1).

    Attributes:
        start, end: the segment, start < end.
        tau: temperature; smaller is steeper.
    """

    start: float | Array = -3.0
    end: float | Array = 3.0
    tau: float | Array = 1.0

    def __call__(self, t: Array) -> Level:
        # logistic(a) - logistic(b) = sinh((a-b)/2) / (2 cosh(a/2) cosh(b/2)) takes no difference: both ends are exact.
        t, (s, e) = _float(t), self._half_ends()
        common = jnp.cosh(s + t * (e - s)) * jnp.sinh(e - s)
        alpha2 = jnp.sinh((1 - t) * (e - s)) * jnp.cosh(s) / common
        sigma2 = jnp.sinh(t * (e - s)) * jnp.cosh(e) / common
        return Level(t, _sqrt(alpha2), _sqrt(sigma2))

    def time(self, lam: Array) -> Array:
        s, e = self._half_ends()
        ratio = jnp.exp(2 * _float(lam)) * jnp.cosh(e) / jnp.cosh(s)
        return jnp.log1p(2 * jnp.sinh(e - s) / (ratio + jnp.exp(s - e))) / (2 * (e - s))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t, (s, e) = _float(t), self._half_ends()
        beta = (e - s) * (1 / jnp.tanh((1 - t) * (e - s)) + jnp.tanh(s + t * (e - s)))  # -d log(alpha^2) / dt
        return -0.5 * beta, jnp.sqrt(beta)

    def _half_ends(self) -> tuple[float | Array, float | Array]:
        return 0.5 * self.start / self.tau, 0.5 * self.end / self.tau


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shifted(_Differentiated):
    """Another process with its noise scaled: sigma / alpha is `shift` times as large at the same t.

    For a resolution d times the side of the one that the base was tuned for, shift = d keeps the signal-to-noise ratio
    of the image's coarse content (Hoogeboom et al. 2023, arXiv:2301.11093, eq. 4); around Flow it is
    t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23, shift = sqrt(m / n) pixels).

    Attributes:
        base: the process to shift; its formula has to go on beyond its noisiest time, as all but a table's and
            `Learned`'s do.
        shift: factor of sigma / alpha, > 0.
    Raises:
        ValueError: a base that ends at its noisiest time, where the shift would be lost.
    """

    base: Process
    shift: float | Array

    def __post_init__(self) -> None:
        if isinstance(self.base, Discrete | Learned):
            raise ValueError(
                f"Shifted takes a process with a formula, got {type(self.base).__name__}: "
                "use Discrete.shifted(shift), or subtract log(shift) from both ends of Learned"
            )

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        return self.base(self.base.time(self.base(t).lam - jnp.log(self.shift)))._replace(t=t)

    def time(self, lam: Array) -> Array:
        return self.base.time(_float(lam) + jnp.log(self.shift))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Learned(_Differentiated):
    """Variance preserving with a learned monotone log-SNR whose ends stay (after Kingma et al. 2021, section 5.1).

    lam falls from lam_max at t = 0 to lam_min at t = 1 through K straight pieces over equal times, each a learned
    share of the whole fall: monotone and with an exact inverse whatever the logits. Logits of zero make it straight.

    Attributes:
        logits: [K]; softmax gives each piece's share.
        lam_max, lam_min: the ends; no gradient reaches them.
    """

    logits: Array
    lam_max: float | Array = 5.0
    lam_min: float | Array = -5.0

    def __call__(self, t: Array) -> Level:
        t = _float(t)
        lam_max, lam_min = self._ends()
        return _level_vp(t, lam_max + (lam_min - lam_max) * jnp.interp(t, *self._knots()))

    def time(self, lam: Array) -> Array:
        lam_max, lam_min = self._ends()
        times, shares = self._knots()
        return jnp.interp((lam_max - _float(lam)) / (lam_max - lam_min), shares, times)

    def _knots(self) -> tuple[Array, Array]:
        shares = jnp.minimum(jnp.cumsum(jax.nn.softmax(self.logits)), 1)  # a rounded sum may exceed 1
        shares = jnp.concatenate([jnp.zeros_like(shares[:1]), shares[:-1], jnp.ones_like(shares[:1])])
        return jnp.linspace(0, 1, shares.shape[0], dtype=shares.dtype), shares

    def _ends(self) -> tuple[Array, Array]:
        return jax.lax.stop_gradient((jnp.asarray(self.lam_max), jnp.asarray(self.lam_min)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Discrete(_Differentiated):
    """A table of betas: the discrete-time DDPM, t = 1..T, with t = 0 the clean data.

    Integer times read the table. Fractional ones interpolate lam (Karras et al. 2022, appendix C.3.4), and where an end
    of the piece is infinite (t in [0, 1], zero terminal SNR) its exponential, which is finite there.

    Attributes:
        alpha: [T + 1] float64, sqrt(abar); alpha[0] = 1.
        sigma: [T + 1] float64, sqrt(1 - abar); sigma[0] = 0.
    """

    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def T(self) -> int:
        """The number of noisy levels."""
        return self.alpha.shape[0] - 1

    def __call__(self, t: Array) -> Level:
        t = jnp.asarray(t)
        if not isinstance(t, jax.core.Tracer) and t.size:
            times = np.asarray(t)  # numpy, since inside jit even a constant's jnp.min is traced
            if not 0 <= times.min() <= times.max() <= self.T:
                raise ValueError(
                    f"t of a table of {self.T} betas lies in 0..{self.T}, got {times.min()}..{times.max()}"
                )
        if jnp.issubdtype(t.dtype, jnp.integer):
            return Level(t, jnp.asarray(self.alpha)[t], jnp.asarray(self.sigma)[t])
        lam, open_end = self._lam(t.dtype)
        i = jnp.clip(jnp.ceil(t).astype(jnp.int32) - 1, 0, self.T - 1)  # t lies in (i, i + 1]
        w, last = t - i.astype(t.dtype), open_end & (i == self.T - 1)
        inner = lam[i] + w * (lam[i + 1] - lam[i])
        first = -safe_log(jnp.where(i == 0, w, 1))  # sigma / alpha is linear from 0
        final = safe_log(1 - jnp.where(last, w, 0))  # alpha / sigma is linear to 0
        return _level_vp(t, inner + first + final)

    def time(self, lam: Array) -> Array:
        lam = _float(lam)
        table, open_end = self._lam(lam.dtype)
        t = jnp.interp(-lam, -table[1:], jnp.arange(1, self.T + 1, dtype=lam.dtype))
        t = jnp.where(lam > table[1], jnp.exp(table[1] - lam), t)
        return jnp.where(open_end & (lam <= table[-1]), self.T - jnp.exp(lam - table[-1]), t)

    def _lam(self, dtype) -> tuple[Array, Array]:
        # lam at 0..T, with an infinite end replaced by its neighbour; and whether the noisy end is infinite.
        inner = Level(jnp.arange(self.T), jnp.asarray(self.alpha)[1:], jnp.asarray(self.sigma)[1:])
        open_end, lam = inner.alpha[-1] == 0, inner.lam.astype(dtype)
        lam = lam.at[-1].set(jnp.where(open_end, lam[max(self.T - 2, 0)], lam[-1]))
        return jnp.concatenate([lam[:1], lam]), open_end

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of dx = f x dt + g dw, t counted in steps: f is close to -beta_t / 2 and g^2 to beta_t."""
        return super().sde(t)

    @property
    def betas(self) -> np.ndarray:
        """[T] float64: beta_t = 1 - abar_t / abar_{t-1}."""
        return 1 - np.square(self.alpha[1:] / self.alpha[:-1])

    def shifted(self, shift: float) -> Discrete:
        """The table with sigma / alpha `shift` times as large at every step; see `Shifted`."""
        norm = np.hypot(self.alpha, shift * self.sigma)
        return replace(self, alpha=self.alpha / norm, sigma=shift * self.sigma / norm)

    def zero_terminal_snr(self) -> Discrete:
        """Shift and scale sqrt(abar) so that abar_T = 0 (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

        Raises:
            ValueError: a table of one step, whose abar_1 the algorithm would keep.
        """
        if self.T < 2:
            raise ValueError(
                "zero terminal SNR keeps abar_1 and moves abar_T: the table needs at least two steps, got 1"
            )
        first, last = self.alpha[1], self.alpha[-1]
        alpha = np.concatenate([[1.0], (self.alpha[1:] - last) * first / (first - last)])
        return replace(self, alpha=alpha, sigma=np.sqrt((1 - alpha) * (1 + alpha)))

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> Discrete:
        """The process of any betas.

        Args:
            betas: [T], in (0, 1); the last may be 1 (zero terminal SNR).
        Raises:
            ValueError: betas are no vector or leave their range.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
            raise ValueError(f"betas must be a vector of numbers in (0, 1), of which the last may be 1, got {betas}")
        with np.errstate(divide="ignore"):
            log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        return cls(np.exp(0.5 * log_abar), np.sqrt(np.abs(np.expm1(log_abar))))

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
        """beta linear in t (Ho et al. 2020, arXiv:2006.11239, section 4)."""
        return cls.from_betas(np.linspace(beta_start, beta_end, T))

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Discrete:
        """sqrt(beta) linear in t (Rombach et al. 2022, arXiv:2112.10752; Stable Diffusion)."""
        return cls.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Discrete:
        """Squared-cosine abar with betas clipped at beta_max (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
        abar = np.cos((np.arange(T + 1) / T + s) / (1 + s) * pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - abar[1:] / abar[:-1], beta_max))

    @classmethod
    def sigmoid(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
        """beta a logistic curve of t over [-6, 6] (Xu et al. 2022, arXiv:2203.02923; GeoDiff)."""
        curve = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))
        return cls.from_betas(beta_start + (beta_end - beta_start) * curve)


def _level_vp(t: Array, lam: Array) -> Level:
    return Level(t, _sqrt(jax.nn.sigmoid(2 * lam)), _sqrt(jax.nn.sigmoid(-2 * lam)))


def _sqrt(x: Array) -> Array:
    # sqrt 0 with gradient 0: the end where alpha or sigma is 0 does not move with the numbers of the process, and the
    # infinite slope in t would come back as NaN in their gradients.
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _float(t: Array) -> Array:
    # Strict promotion refuses integer times; a floating type is kept as it is.
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))
