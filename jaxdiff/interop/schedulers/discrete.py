"""Schedulers on integer times of a table: DDPM, DDIM and its inverse."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.config import Clip, Scheduler
from jaxdiff.interop.schedulers.timesteps import check, end_of, levels, lookup, of_table, times
from jaxdiff.levels import Level, added_variance, clean_level, from_x0, posterior
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import Scalings
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import init_empty

__all__ = ["ddim", "ddim_inverse", "ddpm"]


def ddpm(c: Fields) -> Scheduler:
    """DDPMScheduler."""
    clip = config.thresholded(c) or config.clipped(c, True)
    table = config.rescaled_within(c, config.table(c, more=("sigmoid", "laplace")), clip)
    variance = c.expect("variance_type", "fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")
    list_of, end = _whole_times(c, table), end_of(table, True)
    grid = lambda n: of_table(table, list_of(n), end)  # noqa: E731
    return config.build(table, config.prediction(c), grid, config.always(_ddpm(variance)), clip=clip)


def _ddpm(variance: str) -> Solver:
    """Ancestral sampling. The small variance is at least 1e-20. Every step that does not begin at the first time
    adds noise; with the large variance, so does a step to clean data."""

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        nxt = Level(*(jnp.where(nxt.t > 0, a, b) for a, b in zip(nxt, clean_level(nxt), strict=True)))
        x0 = denoise(x, cur)
        if variance.startswith("learned"):
            x0, frac = x0
        mean, std = posterior(x0, x, cur, nxt)
        small = jnp.maximum(jnp.square(std), 1e-20)
        large = jnp.square(cur.sigma) * added_variance(cur, nxt)
        if variance == "learned_range":
            of_noise = jnp.exp(0.5 * (frac * jnp.log(large) + (1 - frac) * jnp.log(small)))
        else:  # with "learned", the network predicts the variance, which is 2 frac - 1
            kinds = {"fixed_large": large, "learned": 2 * frac - 1 if variance == "learned" else 0}
            of_noise = jnp.sqrt(kinds.get(variance, small))
        return mean + jnp.where(cur.t > 1, of_noise, 0) * normal_like(key, x), state

    learned = variance.startswith("learned")
    return Solver(init_empty, step, stochastic=True, learned_variance=learned, decreasing=False)


def ddim(c: Fields) -> Scheduler:
    """DDIMScheduler, whose steps go down by T // N from each time of its list, even if the next time differs."""
    clip = config.thresholded(c) or config.clipped(c, True)
    table = config.rescaled_within(c, config.table(c), clip)
    T, list_of = c.get("num_train_timesteps", 1000), _whole_times(c, table)
    end = end_of(table, c.get("set_alpha_to_one", True))
    to = lookup(table, end)

    def grid(n: int) -> Level:
        return of_table(table, list_of(n), end)

    def solver(n: int) -> Solver:
        return _stepping(lambda cur: to(cur.t - 1 - T // n), clip)

    return config.build(table, config.prediction(c), grid, solver)


def _stepping(to: Callable[[Level], Level], clip: Clip | None) -> Solver:
    """DDIM to a level that may differ from the grid's next, with eps of the network, not of the clipped x_0."""

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        return _arrive(to(cur), _clipped(clip, x0, x, cur), eps), state

    return Solver(init_empty, step, decreasing=False)


def _clipped(clip: Clip | None, x0: Array, x: Array, level: Level) -> Array:
    return x0 if clip is None else clip(lambda x, level: x0)(x, level)


def _arrive(level: Level, x0: Array, eps: Array) -> Array:
    return level.alpha.astype(x0.dtype) * x0 + level.sigma.astype(x0.dtype) * eps


def ddim_inverse(c: Fields) -> Scheduler:
    """DDIMInverseScheduler, whose steps go up to each time of its list from T // N below.

    The first x may be clean data, where eps does not follow from x_0. So `prediction` does not change the network's
    output, and the solver converts it.
    """
    table, clip = config.rescaled(c, config.table(c)), config.clipped(c, True)
    T, from_clean = c.get("num_train_timesteps", 1000), c.get("set_alpha_to_one", True)
    from_clean = c.get("set_alpha_to_zero", from_clean)  # the name in older versions
    c.expect("timestep_spacing", "leading", "trailing")
    list_of = _whole_times(c, table)
    kind = c.expect("prediction_type", *config.PREDICTIONS)
    begin = end_of(table, from_clean)
    at_time = lookup(table, begin)

    def grid(n: int) -> Level:
        t = list_of(n)[::-1]
        at = np.append(np.minimum(t - T // n, T - 1), t[-1]) + 1
        if np.any(at <= 0) and from_clean and kind == "sample":
            raise ValueError("DDIMInverseScheduler begins at clean data, where a predicted sample says nothing of eps")
        alpha, sigma = (
            np.where(at > 0, a[np.maximum(at, 0)], first)
            for a, first in zip((table.alpha, table.sigma), begin[1:], strict=True)
        )
        return levels(np.append(t, t[-1]) + 1, alpha, sigma)

    def solver(n: int) -> Solver:
        def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
            F, t = denoise(x, cur), cur.t - 1
            cur, nxt = at_time(jnp.minimum(t - T // n, T - 1)), at_time(jnp.where(t < 0, t + table.T, t))
            x0, eps = _x0_and_eps(kind, F, x, cur)
            return _arrive(nxt, _clipped(clip, x0, x, cur), eps), state

        return Solver(init_empty, step, decreasing=False)

    return config.build(table, _as_it_is, grid, solver)


def _as_it_is(level: Level) -> Scalings:
    ones = jnp.ones_like(level.alpha)
    return Scalings(jnp.zeros_like(ones), ones, ones, level.t - 1)


def _x0_and_eps(kind: str, F: Array, x: Array, level: Level) -> tuple[Array, Array]:
    """Return x_0 and eps, given the network's output."""
    alpha, sigma = (field.astype(x.dtype) for field in level[1:])
    if kind == "epsilon":
        return (x - sigma * F) / alpha, F
    if kind == "sample":
        return F, (x - alpha * F) / sigma
    return alpha * x - sigma * F, sigma * x + alpha * F


def _whole_times(c: Fields, table: Discrete) -> Callable[[int], np.ndarray]:
    """Return the list of times, counted from 0. Rounding may append -1, for which the network gets the last time."""
    spacing, offset = config.whole_spacing(c)
    T = c.get("num_train_timesteps", 1000)

    def list_of(n: int) -> np.ndarray:
        check(n, T)
        t = np.round(times(T, n, spacing, offset)).astype(int)
        if t[0] >= table.T:
            raise ValueError(f"{n} steps and steps_offset {offset} begin at {t[0]}, beyond a table of {table.T} times")
        return t

    return list_of
