"""k-diffusion's steps with an inner point at the middle in log sigma: DPM2, and DPM-Solver++ for the SDE."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.interop.schedulers.timesteps import ratio
from jaxdiff.levels import Level, from_x0
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver
from jaxdiff.solvers.ancestral import ancestral_step
from jaxdiff.solvers.base import init_empty, select_level

__all__ = ["midpoint", "sde"]


def midpoint(table: Discrete, *, ancestral: bool) -> Solver:
    """DPM2 in sigma, x = x_0 + sigma eps; the step to sigma = 0 is an Euler step."""

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        not_last = nxt.sigma > 0
        down, up = ancestral_step(1.0, x, cur, nxt) if ancestral else (nxt, jnp.zeros((), x.dtype))
        inner = not_last & (down.sigma > 0)
        mid = select_level(inner, cur, _between(table, cur, jnp.where(inner, down.sigma, cur.sigma)))
        x0, eps = from_x0(denoise(x, cur), x, cur)
        x_mid = x0 + mid.sigma * eps
        eps_mid = from_x0(denoise(x_mid, mid), x_mid, mid).eps
        x_next = x + (down.sigma - cur.sigma) * eps_mid
        x_next = x_next + up * normal_like(key, x) if ancestral else x_next
        return jnp.where(not_last, x_next, x0), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=ancestral, decreasing=False)


def sde(table: Discrete) -> Solver:
    """DPM-Solver++ of one stage to the inner point, then with the prediction there from the start to the end.

    Both stages add noise of the same Brownian path in sigma, so that the second stage's noise includes some of the
    first's.
    """

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        not_last = nxt.sigma > 0
        mid = _between(table, cur, jnp.where(not_last, nxt.sigma, cur.sigma))
        x0, eps = from_x0(denoise(x, cur), x, cur)
        first, rest = normal_like(key, x), normal_like(fold_in(key, 1), x)
        down, up = ancestral_step(1.0, x, cur, mid)
        x_mid = x0 + down.sigma * eps + up * first
        x0_mid = denoise(x_mid, mid)
        down, up = ancestral_step(1.0, x, cur, nxt)
        share = (cur.sigma - mid.sigma) / jnp.where(not_last, cur.sigma - nxt.sigma, 1)
        z = jnp.sqrt(share) * first + jnp.sqrt(jnp.maximum(1 - share, 0)) * rest
        x_next = x0_mid + down.sigma / cur.sigma * (x - x0_mid) + up * z
        return jnp.where(not_last, x_next, x0), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=True, decreasing=False)


def _between(table: Discrete, cur: Level, sigma: Array) -> Level:
    """Return the middle level in log sigma, with the time by the table, clipped to its range."""
    middle = jnp.sqrt(cur.sigma * sigma)
    known = jnp.asarray(np.log(ratio(table)), middle.dtype)
    t = 1 + jnp.interp(jnp.log(middle), known, jnp.arange(table.T, dtype=middle.dtype))
    return Level(t.astype(cur.t.dtype), cur.alpha, middle)
