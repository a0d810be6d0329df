"""Processes with continuous time: VP, SubVP, VE, EDM, Flow, Cosine, Sigmoid, Laplace."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import concrete
from jaxdiff.levels import Level, safe_sqrt
from jaxdiff.processes.base import AutodiffSDE, UnitTime, to_float

__all__ = ["EDM", "VE", "VP", "Cosine", "Flow", "Laplace", "Sigmoid", "SubVP"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VP(UnitTime):
    """Variance preserving, beta(t) linear on t in [0, 1] (Song et al. 2020, arXiv:2011.13456, eq. 32-33).

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
    """

    beta_min: float | Array = 0.1
    beta_max: float | Array = 20.0

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        log_alpha = self._log_alpha(t)
        return Level(t, jnp.exp(log_alpha), safe_sqrt(-jnp.expm1(2 * log_alpha)))

    def time(self, lam: Array) -> Array:
        return self._time_of_log_alpha(-0.5 * jax.nn.softplus(-2 * to_float(lam)))

    def sde(self, t: Array) -> tuple[Array, Array]:
        beta = self._beta(t)
        return -0.5 * beta, jnp.sqrt(beta)

    def _log_alpha(self, t: Array) -> Array:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _beta(self, t: Array) -> Array:
        return self.beta_min + to_float(t) * (self.beta_max - self.beta_min)

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

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        log_alpha = self._log_alpha(t)
        return Level(t, jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha))

    def time(self, lam: Array) -> Array:
        # sigma / alpha = 1/alpha - alpha = 2 sinh(-log alpha)
        return self._time_of_log_alpha(-jnp.arcsinh(0.5 * jnp.exp(-to_float(lam))))

    def sde(self, t: Array) -> tuple[Array, Array]:
        beta, sigma = self._beta(t), self(t).sigma
        return -0.5 * beta, jnp.sqrt(beta * sigma * (2 - sigma))  # 1 - alpha^4 = sigma (2 - sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VE(UnitTime):
    """Variance exploding: alpha = 1, sigma geometric on t in [0, 1] (Song et al. 2020, eq. 30-31).

    Attributes:
        sigma_min: noise at t = 0.
        sigma_max: noise at t = 1.
    """

    sigma_min: float | Array = 0.01
    sigma_max: float | Array = 50.0

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return Level(t, jnp.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t)

    def time(self, lam: Array) -> Array:
        return -(to_float(lam) + jnp.log(self.sigma_min)) / self._log_ratio()

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = to_float(t)
        return jnp.zeros_like(t), self(t).sigma * jnp.sqrt(2 * self._log_ratio())

    def _log_ratio(self) -> Array:
        return jnp.log(self.sigma_max / self.sigma_min)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma = t: the time is the noise level (Karras et al. 2022, arXiv:2206.00364, table 1).

    The cleanest time is 0, data; there is no noisiest time. The paper samples images from sigma = 80.
    """

    t_min: ClassVar[float] = 0.0

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return Level(t, jnp.ones_like(t), t)

    def time(self, lam: Array) -> Array:
        return jnp.exp(-to_float(lam))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = to_float(t)
        return jnp.zeros_like(t), jnp.sqrt(2 * t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow(UnitTime):
    """Flow matching and rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022, arXiv:2209.03003, eq. 1).

    Data is at t = 0, noise at t = 1.
    """

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return Level(t, 1 - t, t)

    def time(self, lam: Array) -> Array:
        return jax.nn.sigmoid(-to_float(lam))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t = to_float(t)
        return -1 / (1 - t), jnp.sqrt(2 * t / (1 - t))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cosine(UnitTime):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans and Ho 2022, arXiv:2202.00512, sec. 2)."""

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return Level(t, jnp.sin(0.5 * pi * (1 - t)), jnp.sin(0.5 * pi * t))  # sin for both: exactly 0 at the ends

    def time(self, lam: Array) -> Array:
        lam = to_float(lam)
        # Of the smaller of alpha and sigma over the larger: the gradient at an infinite quotient would be NaN.
        angle = jnp.arctan(jnp.exp(-jnp.abs(lam)))
        return 2 / pi * jnp.where(lam > 0, angle, 0.5 * pi - angle)

    def sde(self, t: Array) -> tuple[Array, Array]:
        level = self(t)
        tan = level.sigma / level.alpha
        return -0.5 * pi * tan, jnp.sqrt(pi * tan)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sigmoid(UnitTime):
    """alpha^2 a segment of the logistic curve, rescaled to run from 1 to 0 (Chen 2023, arXiv:2301.10972, alg. 1).

    Attributes:
        start, end: ends of the segment, start < end.
        tau: temperature; smaller is steeper.
    """

    start: float | Array = -3.0
    end: float | Array = 3.0
    tau: float | Array = 1.0

    @concrete
    def __call__(self, t: Array) -> Level:
        # logistic(a) - logistic(b) = sinh((a-b)/2) / (2 cosh(a/2) cosh(b/2)), without cancellation: both ends are
        # exact.
        t, (s, e) = to_float(t), self._half_ends()
        common = jnp.cosh(s + t * (e - s)) * jnp.sinh(e - s)
        alpha2 = jnp.sinh((1 - t) * (e - s)) * jnp.cosh(s) / common
        sigma2 = jnp.sinh(t * (e - s)) * jnp.cosh(e) / common
        return Level(t, safe_sqrt(alpha2), safe_sqrt(sigma2))

    def time(self, lam: Array) -> Array:
        s, e = self._half_ends()
        ratio = jnp.exp(2 * to_float(lam)) * jnp.cosh(e) / jnp.cosh(s)
        return jnp.log1p(2 * jnp.sinh(e - s) / (ratio + jnp.exp(s - e))) / (2 * (e - s))

    def sde(self, t: Array) -> tuple[Array, Array]:
        t, (s, e) = to_float(t), self._half_ends()
        beta = (e - s) * (1 / jnp.tanh((1 - t) * (e - s)) + jnp.tanh(s + t * (e - s)))  # -d log(alpha^2) / dt
        return -0.5 * beta, jnp.sqrt(beta)

    def _half_ends(self) -> tuple[float | Array, float | Array]:
        return 0.5 * self.start / self.tau, 0.5 * self.end / self.tau


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace(AutodiffSDE, UnitTime):
    """Variance preserving, log SNR Laplace-distributed for uniform t (Hang et al. 2024, arXiv:2407.03297, table 1).

    Most times have a log SNR near mu: a schedule for training. Sampling may use another process (`times.scheduled`).

    Attributes:
        mu: mean of log SNR = 2 lam.
        b: scale of log SNR, its mean distance from mu, > 0.
    """

    mu: float | Array = 0.0
    b: float | Array = 0.5

    @concrete
    def __call__(self, t: Array) -> Level:
        # SNR = exp(mu) (2t)^-b up to t = 1/2 and exp(mu) (2 - 2t)^b after; the ratio of the smaller variance to the
        # larger is exactly 0 at both ends.
        t = to_float(t)
        late = t > 0.5
        edge = 2 * jnp.where(late, 1 - t, t)  # a minimum would have no slope where both are equal
        power = jnp.where(edge > 0, jnp.where(edge > 0, edge, 1) ** self.b, 0)
        ratio = power * jnp.exp(jnp.where(late, self.mu, -self.mu))
        small, large = safe_sqrt(ratio / (1 + ratio)), jnp.sqrt(1 / (1 + ratio))
        return Level(t, jnp.where(late, small, large), jnp.where(late, large, small))

    def time(self, lam: Array) -> Array:
        z = (2 * to_float(lam) - self.mu) / self.b
        tail = 0.5 * jnp.exp(-jnp.abs(z))
        return jnp.where(z > 0, tail, 1 - tail)
