"""Schedulers of distilled networks: LCM and TCD."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.interop.architecture import Fields
from jaxdiff.interop.schedulers import base
from jaxdiff.interop.schedulers.base import Limit, Sampling
from jaxdiff.interop.schedulers.lists import check, end_of, of_table
from jaxdiff.levels import Level, from_x0, q_sample
from jaxdiff.noise import normal_like
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import stateless

__all__ = ["lcm", "tcd"]


def lcm(c: Fields) -> Sampling:
    """LCMScheduler: x_0 through the consistency function of Luo et al. 2023 (arXiv:2310.04378, section 4.1)."""
    limit, scaling = base.thresholded(c) or base.clipped(c, False), c.take("timestep_scaling", 10.0)
    table, grid = _listed(c, limit, to_clean=True)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        t = (scaling * (cur.t - 1)).astype(x.dtype)
        skip, out = 0.25 / (t**2 + 0.25), t / jnp.sqrt(t**2 + 0.25)
        return q_sample(out * denoise(x, cur) + skip * x, normal_like(key, x), nxt), state

    solver = Solver(stateless, step, order=None, stochastic=True)
    return Sampling(table, base.row(c), grid, solver, base.unit, limit or base.free)


def tcd(c: Fields) -> Sampling:
    """TCDScheduler with its eta of 0.3: DDIM to 0.7 of the next time, and noise up to it (Zheng et al. 2024, alg. 3).

    arXiv:2402.19159. Like theirs it limits no x_0, whatever the config says.
    """
    table, grid = _listed(c, None, to_clean=False)
    alpha, sigma = (a[1 + np.floor(0.7 * np.arange(table.T)).astype(int)] for a in (table.alpha, table.sigma))

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        i = jnp.round(nxt.t).astype(jnp.int32) - 1
        x0, eps = from_x0(denoise(x, cur), x, cur)
        keep = nxt.alpha / jnp.asarray(alpha, x.dtype)[i]
        s = jnp.asarray(sigma, x.dtype)[i]
        drawn = jnp.sqrt(jnp.maximum(jnp.square(nxt.sigma) - jnp.square(keep * s), 0))
        return nxt.alpha * x0 + keep * s * eps + drawn * normal_like(key, x), state

    solver = Solver(stateless, step, stochastic=True, falling=False)
    return Sampling(table, base.row(c), grid, solver, base.unit, base.free)


def _listed(c: Fields, limit: Limit | None, *, to_clean: bool) -> tuple[Discrete, Callable[[int], Level]]:
    """The table, and a grid on N of the `original_inference_steps` times that the network has learned."""
    table = base.rescaled_within(c, base.table(c, 0.00085, 0.012, "scaled_linear"), limit)
    T, most = c.take("num_train_timesteps", 1000), c.take("original_inference_steps", 50)
    check(most, T)
    learned = (T // most) * np.arange(most, 0, -1) - 1

    def grid(n: int) -> Level:
        check(n, most)
        t = learned[np.floor(np.linspace(0, most, n, endpoint=False)).astype(int)]
        if t[0] >= table.T:
            raise ValueError(f"the list begins at {t[0]}, beyond a table of {table.T} times")
        return of_table(table, t, end_of(table, to_clean))

    return table, grid
