"""Beta tables: the discrete-time DDPM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, is_traced
from jaxdiff.levels import Level, safe_log
from jaxdiff.processes.base import AutodiffSDE, to_float, vp_level

__all__ = ["Discrete"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Discrete(AutodiffSDE):
    """A table of betas: the discrete-time DDPM, t = 1..T, with t = 0 the clean data.

    Integer times index the table. Fractional times interpolate lam (Karras et al. 2022, appendix C.3.4), or its
    exponential next to an infinite end (t in [0, 1], and the last step with zero terminal SNR).

    Attributes:
        alpha: [T + 1] float64, sqrt(abar); alpha[0] = 1.
        sigma: [T + 1] float64, sqrt(1 - abar); sigma[0] = 0.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    t_min: ClassVar[float] = 0.0

    @property
    def T(self) -> int:
        """The number of noisy levels."""
        return self.alpha.shape[0] - 1

    @property
    def t_max(self) -> float:
        """The noisiest time, T."""
        return float(self.T)

    @concrete
    def __call__(self, t: Array) -> Level:
        t = jnp.asarray(t)
        if not is_traced(t) and t.size:
            times = np.asarray(t)  # numpy, since inside jit even jnp.min of a constant is traced
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
        return vp_level(t, inner + first + final)

    def time(self, lam: Array) -> Array:
        lam = to_float(lam)
        table, open_end = self._lam(lam.dtype)
        t = jnp.interp(-lam, -table[1:], jnp.arange(1, self.T + 1, dtype=lam.dtype))
        t = jnp.where(lam > table[1], jnp.exp(table[1] - lam), t)
        return jnp.where(open_end & (lam <= table[-1]), self.T - jnp.exp(lam - table[-1]), t)

    def _lam(self, dtype) -> tuple[Array, Array]:
        # lam at 0..T, with infinite ends replaced by their neighbours; and whether the noisy end is infinite.
        inner = Level(jnp.arange(self.T), jnp.asarray(self.alpha)[1:], jnp.asarray(self.sigma)[1:])
        open_end, lam = inner.alpha[-1] == 0, inner.lam.astype(dtype)
        lam = lam.at[-1].set(jnp.where(open_end, lam[max(self.T - 2, 0)], lam[-1]))
        return jnp.concatenate([lam[:1], lam]), open_end

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of dx = f x dt + g dw, with t in steps: f is about -beta_t / 2 and g^2 about beta_t."""
        return super().sde(t)

    @property
    def betas(self) -> np.ndarray:
        """[T] float64: beta_t = 1 - abar_t / abar_{t-1}."""
        return 1 - np.square(self.alpha[1:] / self.alpha[:-1])

    def shifted(self, shift: float) -> Discrete:
        """The table with sigma / alpha multiplied by `shift` at every step; see `Shifted`.

        Raises:
            ValueError: shift is not positive.
        """
        if not shift > 0:
            raise ValueError(f"shift must be positive, got {shift}")
        norm = np.hypot(self.alpha, shift * self.sigma)
        return replace(self, alpha=self.alpha / norm, sigma=shift * self.sigma / norm)

    def zero_terminal_snr(self) -> Discrete:
        """Shift and scale sqrt(abar) so that abar_T = 0 (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

        Raises:
            ValueError: a table of one step, for which abar_1 and abar_T are equal.
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
        """Make the process from betas.

        Args:
            betas: [T], in (0, 1); the last may be 1 (zero terminal SNR).

        Raises:
            ValueError: `betas` is not a vector, or outside its range.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
            raise ValueError(f"betas must be a vector of numbers in (0, 1), of which the last may be 1, got {betas}")
        with np.errstate(divide="ignore"):
            log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        return cls(np.exp(0.5 * log_abar), np.sqrt(np.abs(np.expm1(log_abar))))

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
        """beta linear in t (Ho et al. 2020, arXiv:2006.11239, sec. 4)."""
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
