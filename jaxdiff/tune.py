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
    """Move the inner levels of a grid until the solver ends nearest to the exact flow, by gradient through `sample`.

    Adam on the logarithms of the grid's steps in lam, so that its noise always falls; the ends stay. What is minimized
    is the distance of each x at the end, and not a perceptual one (Watson et al. 2022, arXiv:2202.05830) or a bound on
    the divergence (Sabour et al. 2024, arXiv:2404.14507).

    Args:
        denoise: (x_t, level) -> x0_hat, with guidance and whatever else it will be used with.
        solver: one that draws no noise.
        levels: the grid to start from, fields [N + 1], N >= 2; concrete.
        x: x_T to tune on, [B, ...].
        key: one key, or [B] keys.
        process: names the time of each level; a beta table's become fractions.
        reference: where x should end, like x; None takes Heun's method with 128 steps of equal angle.
        iterations: of Adam, on a cosine decay.
        lr: its first learning rate.
        remat: as for `sample`.

    Returns:
        (the levels with the least loss that was met, fields [N + 1]; the mean squared distance before each iteration,
        [iterations], of which the first is the given grid's).

    Raises:
        ValueError: a solver that draws noise, a grid of fewer than two steps or traced, or iterations < 1.
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
    """Choose n steps among the levels of a fine grid with the least sum of one-step errors, by dynamic programming.

    The search is that of Watson et al. 2021 (arXiv:2106.03802) with another cost, since theirs is the likelihood's:
    from x_i on the fine trajectory, the solver's step to level j misses x_j by a root mean square error, counted
    relative to x_j's own size because the flow contracts about as much. Errors add up at worst: their sum is minimized.

    Args:
        denoise: (x_t, level) -> x0_hat, with guidance and whatever else it will be used with.
        solver: a one-step solver that draws no noise.
        levels: the fine grid, fields [M + 1]. A table's integer times stay integers.
        x: x_T to tune on, [B, ...]; a solver with inner points evaluates batches of M B.
        key: one key, or [B] keys.
        n: number of steps to choose, at most M.
        reference_solver: the solver of the trajectory; None is Heun's method.

    Returns:
        (levels, fields [n + 1]; their indices in the fine grid, [n + 1], of which the first is 0 and the last M).

    Raises:
        ValueError: a multistep solver or one that draws noise, n outside 1..M.
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

    An end with infinite lam (pure noise, clean data) leaves its neighbour free; a finite one has to be met.
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
    if solver.stochastic:
        raise ValueError("a grid is tuned for a solver that draws no noise, got one that does")
    if is_traced(levels):
        raise ValueError("the levels to tune must be concrete: call it outside of jit")
    check_levels(levels)
