"""Schedulers on whole times of a table: DDPM, DDIM, PNDM, LCM."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import solvers
from jaxdiff.interop.architecture import Fields
from jaxdiff.interop.schedulers import base
from jaxdiff.interop.schedulers.base import Limit, Sampling
from jaxdiff.interop.schedulers.lists import check, levels, times
from jaxdiff.levels import Level
from jaxdiff.parameterize import Scalings
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver

__all__ = ["ddim", "ddpm", "lcm", "pndm"]


def ddpm(c: Fields) -> Sampling:
    """DDPMScheduler."""
    table, limit = base.rescaled(c, base.table(c)), base.thresholded(c) or base.clipped(c, True) or base.free
    variance = c.only("variance_type", "fixed_small", "fixed_small_log", "fixed_large", "learned_range")
    solver = solvers.ddpm({"fixed_large": "large", "learned_range": "learned"}.get(variance, "small"))
    return Sampling(table, base.row(c), _grid(c, table, True), solver, base.unit, limit)


def ddim(c: Fields) -> Sampling:
    """DDIMScheduler."""
    table, limit = base.rescaled(c, base.table(c)), base.thresholded(c) or base.clipped(c, True)
    grid = _grid(c, table, c.take("set_alpha_to_one", True))
    solver = solvers.ddim() if limit is None else _limited_ddim(limit)
    return Sampling(table, base.row(c), grid, solver, base.unit, base.free)


def _limited_ddim(limit: Limit) -> Solver:
    """DDIM whose eps is the network's, not that of x_0 after it has been limited."""
    free = solvers.ddim()

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0 = denoise(x, cur)
        moved, state = free.step(lambda x, level: x0, key, x, state, cur, nxt)
        return moved + nxt.alpha * (limit(lambda x, level: x0)(x, cur) - x0), state

    return free._replace(step=step)


def pndm(c: Fields) -> Sampling:
    """PNDMScheduler."""
    table = base.table(c)
    grid = _grid(c, table, c.take("set_alpha_to_one", False))
    solver = solvers.plms() if c.take("skip_prk_steps", False) else solvers.pndm(table)
    return Sampling(table, base.row(c), grid, solver, base.unit, base.free)


def lcm(c: Fields) -> Sampling:
    """LCMScheduler."""
    table, inner = base.rescaled(c, base.table(c, 0.00085, 0.012, "scaled_linear")), base.row(c)
    k, scaling = table.T // c.take("original_inference_steps", 50), c.take("timestep_scaling", 10.0)
    c.only("clip_sample", False)
    c.only("thresholding", False)

    def row(level: Level) -> Scalings:
        """A consistency function: x itself at the first time (Luo et al. 2023, arXiv:2310.04378, section 4.1)."""
        s, t = inner(level), scaling * (level.t - 1)
        skip, out = 0.25 / (t**2 + 0.25), t / jnp.sqrt(t**2 + 0.25)
        return s._replace(skip=out * s.skip + skip, out=out * s.out)

    def grid(n: int) -> Level:
        check(n, table.T // k)
        learned = k * np.arange(table.T // k, 0, -1) - 1
        t = np.append(learned[np.floor(np.linspace(0, len(learned), n, endpoint=False)).astype(int)], -1)
        return levels(t + 1, table.alpha[t + 1], table.sigma[t + 1])

    return Sampling(table, row, grid, solvers.consistency(), base.unit, base.free)


def _grid(c: Fields, table: Discrete, to_clean: bool) -> Callable[[int], Level]:
    spacing, offset = base.spacing(c, "leading")

    def grid(n: int) -> Level:
        check(n, table.T)
        t = np.append(np.round(times(table.T, n, spacing, offset)), -1 if to_clean else 0).astype(int)
        if t[0] >= table.T:
            raise ValueError(f"steps_offset {offset} leads {n} steps beyond the last of {table.T} times")
        return levels(t + 1, table.alpha[t + 1], table.sigma[t + 1])

    return grid
