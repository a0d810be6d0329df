"""Rectified flow: pairs of noise and the data that the flow makes of it, on which the next flow is straighter.

`losses.denoising_loss` trains on these pairs, with `parameterize.velocity` on `processes.Flow`, and with the times
`times.on_grid(levels)` for a student of a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function
from jaxdiff.levels import Level, append_axes
from jaxdiff.noise import check_key, normal_like
from jaxdiff.sample import sample, sample_path
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.types import Batch, Cond, Denoiser

__all__ = ["reflow", "straightness", "transport_cost"]


def reflow(
    denoise: Callable[[Cond], Denoiser],
    solver: Solver,
    levels: Level,
    keys: Array,
    *,
    shape: tuple[int, ...],
    cond: Cond = None,
    dtype: Any = jnp.float32,
) -> Batch:
    """Make pairs (x_0, eps), x_0 the end of the ODE that starts from eps (Liu et al. 2022, arXiv:2209.03003, alg. 1).

    A pair depends on its own key only, so that a data set is made in batches of any size, e.g. with the keys
    `jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)` for the pairs of these numbers. A student that was trained
    on pairs is the teacher of the next ones.

    Args:
        denoise: condition -> the teacher's denoiser, with guidance if that is to be distilled.
        solver: a deterministic solver, e.g. `solvers.heun()`.
        levels: the grid, from noise to data.
        keys: [B] keys, one for each pair.
        shape: of an example, without the leading axis.
        cond: the condition, a dict of [B, ...]; None means {}. Include the scale of a random guidance.
        dtype: of x_0 and eps.

    Returns:
        a batch: "x" and "eps", [B, *shape], and the condition.

    Raises:
        ValueError: a stochastic solver, whose end is not determined by eps; not one key for each pair; as for `sample`.
    """
    check_function("denoise", denoise, "(cond) -> denoiser")
    _check_deterministic(solver)
    check_key(keys)
    if keys.ndim != 1:
        raise ValueError("reflow takes a vector of keys, one for each pair, got a single key: use jax.random.split")
    cond = {} if cond is None else cond
    eps = normal_like(keys, jnp.zeros((*keys.shape, *shape), dtype))
    x = sample(denoise(cond), solver, levels, levels.sigma[0].astype(dtype) * eps, keys)
    return {**cond, "x": x, "eps": eps}


def straightness(denoise: Denoiser, solver: Solver, levels: Level, x: Array, key: Array) -> Array:
    """S = int |(x_1 - x_0) - dx/dt|^2 dt of each path, 0 if it is straight (Liu et al. 2022).

    Time and paths are those of `processes.Flow`, to which other processes are mapped by scaling x, and go from x_1,
    noise, to x_0. The integral is that of the polygon through the solver's points: with N steps it is too small by
    O(1/N^2), and it is 0 for one step.

    Args:
        denoise: (x_t, level) -> x0_hat.
        solver: a deterministic solver.
        levels: the grid, from noise to data.
        x: at the grid's first level, [B, ...].
        key: as for `sample`.

    Returns:
        [B], sums over the dimensions; the expectation over x is S.

    Raises:
        ValueError: a stochastic solver; as for `sample`.
    """
    _check_deterministic(solver)
    _, path = sample_path(denoise, solver, levels, x, key)
    points = jnp.concatenate([x[None], path])
    over = lambda a: append_axes(a.astype(x.dtype), points.ndim)  # noqa: E731
    alpha, sigma = over(levels.alpha), over(levels.sigma)
    points, t = points / (alpha + sigma), sigma / (alpha + sigma)
    dt = t[:-1] - t[1:]
    bend = (points[:-1] - points[1:]) / dt - ((points[0] - points[-1]) / (t[0] - t[-1]))[None]
    return jnp.sum(dt * jnp.square(bend), axis=(0, *range(2, bend.ndim)))


def transport_cost(x0: Array, eps: Array) -> Array:
    """|eps - x_0|^2 of each pair, whose mean no reflow increases (Liu et al. 2022).

    Args:
        x0: data, [B, ...].
        eps: its noise, like x0.

    Returns:
        [B], sums over the dimensions.
    """
    return jnp.sum(jnp.square(eps - x0), axis=range(1, x0.ndim))


def _check_deterministic(solver: Solver) -> None:
    check_solver(solver)
    if solver.stochastic:
        raise ValueError(f"the flow of an ODE needs a solver that draws no noise, got {solver}")
