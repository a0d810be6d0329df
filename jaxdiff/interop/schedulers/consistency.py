"""Schedulers of distilled networks: consistency models, also in continuous time, LCM and TCD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import guidance, solvers
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.config import Clip, Scheduler
from jaxdiff.interop.schedulers.timesteps import check, end_of, levels, of_table
from jaxdiff.levels import Level, from_x0, q_sample
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import Scalings
from jaxdiff.processes import EDM, AutodiffSDE, Discrete
from jaxdiff.processes.base import to_float
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import init_empty

__all__ = ["iterative", "lcm", "scm", "tcd"]

LAST_ANGLE = 1.57080  # the reference's, a little more than pi / 2


def lcm(c: Fields) -> Scheduler:
    """LCMScheduler: x_0 by the consistency function of Luo et al. 2023 (arXiv:2310.04378, sec. 4.1)."""
    clip, scaling = config.thresholded(c) or config.clipped(c, False), c.get("timestep_scaling", 10.0)
    table, grid = _listed(c, clip, to_clean=True)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        t = (scaling * (cur.t - 1)).astype(x.dtype)
        skip, out = 0.25 / (t**2 + 0.25), t / jnp.sqrt(t**2 + 0.25)
        return q_sample(out * denoise(x, cur) + skip * x, normal_like(key, x), nxt), state

    solver = Solver(init_empty, step, order=None, stochastic=True)
    return config.build(table, config.prediction(c), grid, config.always(solver), clip=clip)


def tcd(c: Fields) -> Scheduler:
    """TCDScheduler with eta = 0.3: DDIM to 0.7 of the next time, then noise to that time.

    Zheng et al. 2024 (arXiv:2402.19159), algorithm 3. As in the reference, x_0 is not clipped for any config.
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

    solver = Solver(init_empty, step, stochastic=True, decreasing=False)
    return config.build(table, config.prediction(c), grid, config.always(solver))


def iterative(c: Fields) -> Scheduler:
    """CMStochasticIterativeScheduler: a consistency model on EDM's sigmas (Song et al. 2023, arXiv:2303.01469)."""
    T, low, high = c.get("num_train_timesteps", 40), c.get("sigma_min", 0.002), c.get("sigma_max", 80.0)
    data, scale, rho = c.get("sigma_data", 0.5), c.get("s_noise", 1.0), c.get("rho", 7.0)

    def prediction(level: Level) -> Scalings:
        """Return the paper's eq. 5, except for sigma in the root of c_out."""
        s, above = level.sigma, level.sigma - low
        norm = jnp.sqrt(s**2 + data**2)
        return Scalings(data**2 / (above**2 + data**2), above * data / norm, 1 / norm, 250 * jnp.log(s))

    def grid(n: int) -> Level:
        check(n, T)
        ramp = np.arange(n) * (T // n) / max(T - 1, 1)
        s = np.append((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho, low)
        return levels(s, np.ones_like(s), s)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        drawn = scale * jnp.sqrt(jnp.maximum(jnp.square(nxt.sigma) - jnp.asarray(low, x.dtype) ** 2, 0))
        return denoise(x, cur) + drawn * normal_like(key, x), state

    def std(levels: Level) -> Array:
        return jnp.asarray(high, levels.sigma.dtype)

    clip = guidance.clip if c.get("clip_denoised", True) else None
    solver = Solver(init_empty, step, order=None, stochastic=True, decreasing=False)
    return config.build(EDM(), prediction, grid, config.always(solver), std=std, clip=clip)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrigFlow(AutodiffSDE):
    """alpha = cos t, sigma = sigma_data sin t (Lu and Song 2024, arXiv:2410.11081, sec. 3.1).

    Attributes:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float | Array = 0.5
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = pi / 2

    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return Level(t, jnp.sin(pi / 2 - t), self.sigma_data * jnp.sin(t))

    def time(self, lam: Array) -> Array:
        return jnp.arctan2(jnp.exp(-to_float(lam)), jnp.asarray(self.sigma_data))


def scm(c: Fields) -> Scheduler:
    """SCMScheduler: a consistency model in continuous time (Lu and Song 2024, arXiv:2410.11081, sec. 3.1 and 4.2).

    x is the pipeline's latents times sigma_data, and so is the initial noise, as in that pipeline; the network gets x
    and the angle t, and returns F with x_0 = cos(t) x - sin(t) F. Two steps meet at 1.3, others are of equal angles.
    """
    T, data = c.get("num_train_timesteps", 1000), c.get("sigma_data", 0.5)
    c.expect("prediction_type", "trigflow")

    def prediction(level: Level) -> Scalings:
        t = to_float(level.t)
        return Scalings(jnp.cos(t), -jnp.sin(t), jnp.ones_like(t), t)

    def grid(n: int) -> Level:
        check(n, T)
        t = np.array([LAST_ANGLE, 1.3, 0.0]) if n == 2 else np.linspace(LAST_ANGLE, 0, n + 1)
        return levels(t, np.maximum(np.cos(t), 0), data * np.sin(t))

    def std(levels: Level) -> Array:
        return jnp.asarray(data, levels.sigma.dtype)

    solver = solvers.consistency()._replace(decreasing=False)
    return config.build(TrigFlow(data), prediction, grid, config.always(solver), std=std)


def _listed(c: Fields, clip: Clip | None, *, to_clean: bool) -> tuple[Discrete, Callable[[int], Level]]:
    """Return the table, and a grid of N of the `original_inference_steps` times of the distillation."""
    table = config.rescaled_within(c, config.table(c, 0.00085, 0.012, "scaled_linear"), clip)
    T, most = c.get("num_train_timesteps", 1000), c.get("original_inference_steps", 50)
    check(most, T)
    learned = (T // most) * np.arange(most, 0, -1) - 1

    def grid(n: int) -> Level:
        check(n, most)
        t = learned[np.floor(np.linspace(0, most, n, endpoint=False)).astype(int)]
        if t[0] >= table.T:
            raise ValueError(f"the list begins at {t[0]}, beyond a table of {table.T} times")
        return of_table(table, t, end_of(table, to_clean))

    return table, grid
