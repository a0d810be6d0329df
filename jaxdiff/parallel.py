"""Samples at several levels at once: parallel in time, or a stream of pictures of which each is one step further.

Both evaluate the denoiser for many (example, level) pairs in one call, and take the solver's own steps. They need a
solver without a history. An example depends on its own key and condition only: one that is done waits for no other, and
its result is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from jaxdiff.checks import check_denoiser, check_inexact, check_number
from jaxdiff.levels import Level, append_axes, typed_levels
from jaxdiff.noise import check_key
from jaxdiff.sample import check_levels, check_pure_noise, checked_step, in_single
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.types import Cond, Denoiser

__all__ = ["Stream", "sample_parallel", "stream"]


def sample_parallel(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    window: int,
    tolerance: float | Array = 1e-3,
    axis: str | None = None,
) -> tuple[Array, Array]:
    """`sample` by Picard iteration over a window of steps (ParaDiGMS, Shih et al. 2023, arXiv:2305.16317, alg. 1).

    A round takes `window` steps at once, from guesses of the states between them, and corrects each guess by the sum of
    what the steps before it depart from the guesses that follow them. The window moves past the states that have
    changed by less than the tolerance, and past one at least, which is exact: N rounds at most, and with tolerance 0
    the result is that of `sample` up to rounding. Noise is that of `sample`, too. A round costs `window` times the
    evaluations of a step: it saves time where these are computed side by side.

    Args:
        denoise: (x_t, level) -> x0_hat, for a batch and one level per example.
        solver: one without a history, such as `solvers.ddim()`.
        levels: fields [N + 1], noisiest first.
        x: x_T, [B, ...].
        key: [B] keys; one key will do where the solver draws no noise.
        window: steps that are taken at once, at most N.
        tolerance: root mean square change of a state, relative to sqrt(alpha^2 + sigma^2), at which it is accepted; may
            be traced.
        axis: name of a mesh axis over which the window is split; None leaves that to the compiler.

    Returns:
        (x at the last level, like x; the number of rounds of each example, int [B]).

    Raises:
        ValueError: as for `sample`; the solver has a history, or needs a key for each example; a window that is no
            number of steps, a negative tolerance.
    """
    check_inexact("x", x)
    dtype, x = x.dtype, in_single(x)
    take = _steps(denoise, solver, x, key)
    check_levels(levels)
    check_pure_noise(denoise, levels, x, next_level=solver.next_level, one_each=True)
    n = levels.t.shape[0] - 1
    if not isinstance(window, int | np.integer) or not 1 <= window <= n:
        raise ValueError(f"window must be a number of steps, from 1 to the grid's {n}, got {window}")
    check_number("tolerance", tolerance, low=0.0)
    levels = typed_levels(levels, x)
    batch, slots = x.shape[0], jnp.arange(window)[:, None]
    spread = _split(axis)
    take_all = jax.vmap(take, spmd_axis_name=axis)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        guesses, front, rounds = carry  # [window + 1, B, ...], the states from step `front` [B] on
        i = front[None] + slots
        taken, i = _like(i < n, x), jnp.minimum(i, n - 1)
        ends = take_all(spread(guesses[:-1]), i, levels.at(i), levels.at(i + 1))
        change = jnp.cumsum(jnp.where(taken, ends - guesses[1:], 0), axis=0)
        guesses = guesses.at[1:].add(change)
        level = levels.at(i + 1)
        size = jnp.mean(jnp.square(change), axis=tuple(range(2, change.ndim)))
        settled = size <= jnp.square(jnp.asarray(tolerance, x.dtype)) * (level.alpha**2 + level.sigma**2)
        moved = 1 + jnp.sum(jnp.cumprod(settled[:-1].astype(int), axis=0), axis=0)  # the first state is exact
        moved = jnp.minimum(moved, n - front)
        guesses = jax.vmap(lambda a, by: a[jnp.minimum(jnp.arange(window + 1) + by, window)], (1, 0), 1)(guesses, moved)
        return guesses, front + moved, rounds + (front < n).astype(rounds.dtype)

    start = jnp.repeat(x[None], window + 1, axis=0), jnp.zeros(batch, int), jnp.zeros(batch, int)
    guesses, _, rounds = jax.lax.while_loop(lambda carry: jnp.any(carry[1] < n), body, start)
    return guesses[0].astype(dtype), rounds


class Stream(NamedTuple):
    """Pictures on their way: slot i is at level i, and has i steps behind it.

    Attributes:
        x: [N, ...].
        key: [N] keys.
        cond: leaves [N, ...].
    """

    x: Array
    key: Array
    cond: Cond


def stream(
    denoise_of: Callable[[Cond], Denoiser], solver: Solver, levels: Level
) -> tuple[Callable[[Array, Array, Cond], Stream], Callable[[Stream, Array, Array, Cond], tuple[Stream, Array]]]:
    """Sample without an end: one call takes one picture in and gives one out (StreamDiffusion, Kodaira et al. 2023,
    arXiv:2312.12491).

    Each call evaluates the denoiser once for N pictures, one at each level of the grid. A picture comes out after N
    calls, as `sample` would make it from the same x, key and condition.

        start, push = stream(denoise_of, solver, levels)
        state = start(x, key, cond)
        state, done = push(state, x, key, cond)  # N times before `done` is the first picture

    Args:
        denoise_of: the condition of N pictures -> their denoiser, given one level per picture.
        solver: one without a history.
        levels: fields [N + 1], noisiest first.

    Returns:
        (start, push). start: (x [...], key, condition with leaves [...]) -> a stream of copies of one picture.
        push: (stream, x_T [...], key, condition) -> (stream, the picture that is done, [...]); compile it.

    Raises:
        ValueError: as for `sample_parallel`.
    """
    check_levels(levels)
    n = levels.t.shape[0] - 1

    def start(x: Array, key: Array, cond: Cond) -> Stream:
        copies = lambda a: jnp.repeat(jnp.asarray(a)[None], n, axis=0)  # noqa: E731
        return Stream(copies(x), copies(key), jax.tree.map(copies, cond))

    def push(state: Stream, x: Array, key: Array, cond: Cond) -> tuple[Stream, Array]:
        enter = lambda old, new: jnp.concatenate([jnp.asarray(new)[None].astype(old.dtype), old[:-1]])  # noqa: E731
        keys = jnp.concatenate([key[None], state.key[:-1]])
        state = Stream(enter(state.x, x), keys, jax.tree.map(enter, state.cond, cond))
        denoise = denoise_of(state.cond)
        take = _steps(denoise, solver, state.x, state.key)
        check_pure_noise(denoise, levels, state.x, next_level=solver.next_level, one_each=True)
        typed, steps = typed_levels(levels, x), jnp.arange(n)
        moved = take(state.x, steps, typed.at(steps), typed.at(steps + 1))
        # Slot i holds what slot i - 1 has come to when the next picture enters.
        return state._replace(x=moved), moved[-1]

    return start, push


def _steps(denoise: Denoiser, solver: Solver, x: Array, key: Array) -> Callable[..., Array]:
    """A solver's step for examples at levels of their own: (x [B, ...], step number [B], levels [B], levels [B])."""
    check_solver(solver)
    check_denoiser("denoise", denoise, next_level=solver.next_level)
    check_inexact("x", x)
    check_key(key, x.shape[:1])
    history = jax.tree.leaves(jax.eval_shape(solver.init, x))  # of a method of order 1 it is there, and empty
    if any(leaf.size for leaf in history) or not solver.decreasing:
        raise ValueError(f"{solver!r} remembers earlier steps: take one without a history, such as solvers.ddim()")
    if solver.stochastic and not key.ndim:
        raise ValueError(f"{solver!r} draws noise, for each example at another step: give one key for each example")

    def of_examples(x: Array, *ends: Level) -> Any:
        return denoise(x, *(jax.tree.map(lambda field: field.reshape(-1), level) for level in ends))

    step = checked_step(of_examples, solver)

    def take(x: Array, i: Array, cur: Level, nxt: Level) -> Array:
        keys = jax.vmap(jax.random.fold_in)(key, i) if key.ndim else key
        ends = (jax.tree.map(lambda field: _like(field, x), level) for level in (cur, nxt))
        return step(keys, x, solver.init(x), *ends)[0]

    level = Level(*(jnp.ones(x.shape[:1], x.dtype),) * 3)
    try:
        jax.eval_shape(take, x, jnp.zeros(x.shape[:1], int), level, level)
    except TypeError as error:  # a branch that depends on the level
        raise ValueError(f"{solver!r} does not take examples at levels of their own: {error}") from error
    return take


def _like(a: Array, x: Array) -> Array:
    """`a` [..., B] with the axes of x [B, ...] after them."""
    return append_axes(a, a.ndim + x.ndim - 1)


def _split(axis: str | None) -> Callable[[Array], Array]:
    if axis is None:
        return lambda a: a
    return lambda a: jax.lax.with_sharding_constraint(a, PartitionSpec(axis))
