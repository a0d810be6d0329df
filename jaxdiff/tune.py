"""Grids optimized for a denoiser and a solver: by gradient, and by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import is_traced
from jaxdiff.levels import Level
from jaxdiff.processes import Process
from jaxdiff.sample import check_levels, sample, sample_path
from jaxdiff.solvers import Solver, heun
from jaxdiff.solvers.base import check_solver
from jaxdiff.types import Denoiser

__all__ = ["by_dynamic_programming", "by_gradient"]

_FINE = 128  # steps of the reference


def by_gradient(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    process: Process,
    reference: Array | None = None,
    iterations: int = 300,
    lr: float = 0.1,
    remat: bool = False,
) -> tuple[Level, Array]:
    """Move the inner levels of a grid to minimize the solver's final error, by gradients through `sample`.

    Adam on the logarithms of the grid's steps in lam, so that the noise always decreases; the ends are kept. The loss
    is the mean squared distance from the exact flow's end, not a perceptual distance (Watson et al. 2022,
    arXiv:2202.05830) or a bound on the divergence (Sabour et al. 2024, arXiv:2404.14507).

    Args:
        denoise: (x_t, level) -> x0_hat, including guidance, as in sampling.
        solver: a deterministic solver.
        levels: the grid to start from, fields [N + 1], N >= 2; concrete.
        x: x_T to tune on, [B, ...].
        key: one key, or [B] keys.
        process: gives the time of each level; times of a beta table become fractional.
        reference: the target of x, like x; None is the result of Heun's method with 128 steps of equal angle.
        iterations: number of Adam steps, with a cosine decay of the learning rate.
        lr: the initial learning rate.
        remat: as for `sample`.

    Returns:
        (the levels with the lowest loss, fields [N + 1]; the loss before each iteration, [iterations], the first of
        which is that of `levels`).

    Raises:
        ValueError: a stochastic solver, a grid that is traced or has fewer than two steps, or iterations < 1.
    """
    _check(solver, levels)
    if levels.sigma.shape[0] < 3:
        raise ValueError("a grid of one step has no inner level to tune: give at least two steps")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if reference is None:
        fine = _at_lam(process, _equal_angle(levels, _FINE), levels)
        reference = jax.jit(lambda x: sample(denoise, heun(), fine, x, key))(x)
    params, decode = _free(levels)

    def loss(params, x, reference):
        out = sample(denoise, solver, _at_lam(process, decode(params), levels), x, key, remat=remat)
        return jnp.mean(jnp.square(out - reference))

    best, history = jax.jit(lambda *args: _descend(loss, *args, iterations=iterations, lr=lr))(params, x, reference)
    tuned = _at_lam(process, decode(best), levels)
    check_levels(tuned)
    return tuned, history


def by_dynamic_programming(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    n: int,
    reference_solver: Solver | None = None,
) -> tuple[Level, Array]:
    """Choose the n steps of a fine grid with the lowest sum of one-step errors, by dynamic programming.

    The search of Watson et al. 2021 (arXiv:2106.03802), with another cost than their likelihood: the root mean square
    error of the solver's step from x_i of the fine trajectory to level j, relative to the size of x_j, because the flow
    contracts about as much. In the worst case errors add up, so their sum is minimized.

    Args:
        denoise: (x_t, level) -> x0_hat, including guidance, as in sampling.
        solver: a deterministic one-step solver.
        levels: the fine grid, fields [M + 1]. A table's integer times stay integers.
        x: x_T to tune on, [B, ...]; a solver with inner points evaluates batches of M B.
        key: one key, or [B] keys.
        n: number of steps to choose, at most M.
        reference_solver: the solver of the trajectory; None is Heun's method.

    Returns:
        (levels, fields [n + 1]; their indices in the fine grid, [n + 1], of which the first is 0 and the last M).

    Raises:
        ValueError: a multistep or stochastic solver, or n outside 1..M.
    """
    _check(solver, levels)
    M = levels.sigma.shape[0] - 1
    if not isinstance(n, int | np.integer) or not 1 <= n <= M:
        raise ValueError(f"n must be an integer in 1..{M}, the steps of the fine grid, got {n!r:.80}")
    if jax.tree.leaves(jax.eval_shape(solver.init, x)):
        raise ValueError("the cost of a step must not depend on the steps before it: give a one-step solver")

    @jax.jit
    def choose(x):
        path = sample_path(denoise, heun() if reference_solver is None else reference_solver, levels, x, key)[1]
        cost = _one_step_errors(denoise, solver, levels, jnp.concatenate([x[None], path]), key)
        return _cheapest_path(cost, n)

    index = choose(x)
    return levels.at(index), index


# Gradient


class _Free(NamedTuple):
    first: Array  # lam of the first level that has one
    log_steps: Array  # log of the differences of lam, of the levels that have one


def _free(levels: Level) -> tuple[_Free, Callable[[_Free], Array]]:
    """The parameters of a grid, and the map from them to lam of its inner levels [N - 1].

    Next to an end with infinite lam (pure noise, clean data) the first or last lam is free; an end with finite lam is
    fixed.
    """
    lam = jnp.asarray(levels.lam)
    at_first, at_last = bool(jnp.isfinite(lam[0])), bool(jnp.isfinite(lam[-1]))
    lam = lam[0 if at_first else 1 : None if at_last else -1]

    def decode(params: _Free) -> Array:
        if at_first and at_last:
            gone = (lam[-1] - lam[0]) * jnp.cumsum(jax.nn.softmax(params.log_steps))
            return lam[0] + gone[:-1]
        steps = jnp.exp(params.log_steps)
        if at_first:
            return lam[0] + jnp.cumsum(steps)
        if at_last:
            return lam[-1] - jnp.cumsum(steps[::-1])[::-1]
        return params.first + jnp.concatenate([jnp.zeros(1, steps.dtype), jnp.cumsum(steps)])

    return _Free(lam[0], jnp.log(jnp.diff(lam))), decode


def _at_lam(process: Process, lam: Array, levels: Level) -> Level:
    """The grid whose inner levels have lam [N - 1] and whose ends are those of `levels`."""
    inner = process(process.time(lam))
    pairs = zip(levels, inner, strict=True)
    return Level(*(jnp.concatenate([end[:1].astype(new.dtype), new, end[-1:].astype(new.dtype)]) for end, new in pairs))


def _equal_angle(levels: Level, n: int) -> Array:
    """lam of the n - 1 inner levels at equal steps of arctan(sigma / alpha) between a grid's ends."""
    start, end = (jnp.arctan2(levels.sigma[i], levels.alpha[i]) for i in (0, -1))
    return -jnp.log(jnp.tan(jnp.linspace(start, end, n + 1)[1:-1]))


def _descend(loss, params, x: Array, reference: Array, *, iterations: int, lr: float):
    """Adam in one scan: (the parameters with the least loss, every loss)."""
    import optax

    optimizer = optax.adam(optax.cosine_decay_schedule(lr, iterations))

    def iterate(carry, _):
        params, state, best, least = carry
        value, grads = jax.value_and_grad(loss)(params, x, reference)
        best = jax.tree.map(lambda new, old: jnp.where(value < least, new, old), params, best)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, state = optimizer.update(grads, state)
            params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        return (params, state, best, jnp.fmin(value, least)), value

    start = params, optimizer.init(params), params, jnp.asarray(jnp.inf, x.dtype)
    (_, _, best, _), history = jax.lax.scan(iterate, start, length=iterations)
    return best, history


# Dynamic programming


def _one_step_errors(denoise: Denoiser, solver: Solver, levels: Level, path: Array, key: Array) -> Array:
    """Relative root mean square error of one step from level i of the path to level j; inf unless j > i. [M, M + 1]"""
    axes = tuple(range(1, path.ndim))
    scale = jnp.mean(jnp.square(path), axis=axes)
    levels = Level(jnp.asarray(levels.t), *(field.astype(path.dtype) for field in levels[1:]))
    j = jnp.arange(path.shape[0])

    def of(i):
        cur = levels.at(i)
        reached = jax.vmap(lambda nxt: solver.step(denoise, key, path[i], (), cur, nxt)[0])(levels)
        error = jnp.mean(jnp.square(reached - path), axis=axes)
        return jnp.where(j > i, jnp.sqrt(error / scale), jnp.inf)

    return jax.lax.map(of, j[:-1])


def _cheapest_path(cost: Array, n: int) -> Array:
    """The n + 1 indices 0 < ... < M with the least sum of cost[i, j] between neighbours, cost [M, M + 1]."""
    M = cost.shape[0]

    def extend(least, _):
        total = least[:M, None] + cost
        return jnp.min(total, axis=0), jnp.argmin(total, axis=0)

    nothing = jnp.full(M + 1, jnp.inf, cost.dtype).at[0].set(0)
    _, came_from = jax.lax.scan(extend, nothing, length=n)
    _, index = jax.lax.scan(lambda j, back: (back[j], j), jnp.asarray(M), came_from, reverse=True)
    return jnp.concatenate([jnp.zeros_like(index[:1]), index])


def _check(solver: Solver, levels: Level) -> None:
    check_solver(solver)
    if solver.stochastic:
        raise ValueError("a grid is tuned for a solver that draws no noise, got one that does")
    if is_traced(levels):
        raise ValueError("the levels to tune must be concrete: call it outside of jit")
    check_levels(levels)
