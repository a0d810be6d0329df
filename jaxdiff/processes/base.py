"""What every process answers, and what several share."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import Level, safe_sqrt

__all__ = ["Differentiated", "Process", "level_vp", "to_float"]


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


class Differentiated:
    """`sde` by differentiating alpha and sigma: f = alpha'/alpha, g^2 = (sigma^2)' - 2 f sigma^2."""

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of dx = f x dt + g dw at a time t between the ends (Song et al. 2020, arXiv:2011.13456, eq. 5)."""
        t = to_float(t)
        level, slope = jax.jvp(self, (t,), (jnp.ones_like(t),))  # type: ignore[arg-type]
        f = slope.alpha / level.alpha
        return f, jnp.sqrt(2 * level.sigma * (slope.sigma - f * level.sigma))


def level_vp(t: Array, lam: Array) -> Level:
    """The variance-preserving level of a log(alpha / sigma): alpha^2 = logistic(2 lam)."""
    return Level(t, safe_sqrt(jax.nn.sigmoid(2 * lam)), safe_sqrt(jax.nn.sigmoid(-2 * lam)))


def to_float(t: Array) -> Array:
    """A time as a float, for strict promotion refuses integers; a floating type is kept as it is."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))
