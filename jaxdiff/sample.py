"""Sampling and its inversion: one `lax.scan` of a solver over a grid of levels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_denoiser, check_inexact, is_traced
from jaxdiff.levels import Level, check_grid, from_x0, typed_levels
from jaxdiff.noise import check_key, fold_in
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.types import Denoiser

__all__ = [
    "check_levels",
    "check_pure_noise",
    "check_shape",
    "checked_step",
    "in_single",
    "invert",
    "invert_path",
    "sample",
    "sample_path",
    "sample_state",
    "x0_of",
]


def sample(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    start: int | Array | None = None,
    stop: int | Array | None = None,
    remat: bool = False,
    progress: Callable[[Array], None] | None = None,
) -> Array:
    """Integrate x from the grid's first level to its last.

    Call it inside `jax.jit`: everything but the solver and the shapes may be traced. New values of guidance, eta, the
    grid, the condition or the key need no new compilation, and compile time does not grow with N.

    Args:
        denoise: (x_t, level) -> x0_hat; see `parameterize.denoiser` and `guidance`. A `types.FlowMap` for
            `solvers.flow_map`.
        solver: one of `solvers`, or your own.
        levels: fields [N + 1], noisiest first; see `grids`.
        x: x_T, [B, ...]; see `noise.prior`.
        key: one key; or [B] keys, so that each example depends on its own key only.
        start, stop: take only the steps start..stop - 1 of the grid, from its level `start` to its level `stop`.
            Skipped steps cost nothing, except under `vmap`, which computes and discards them. Both may be traced, for a
            number of steps up to N that is traced: after `stop` the grid may repeat its last level.
        remat: store sqrt(N) states for reverse-mode differentiation instead of all N steps' intermediates, and
            recompute the steps between them.
        progress: called on the host with the number of steps done, after each step.

    Returns:
        x at the last level, like x; steps of an x in half precision are taken in float32.

    Raises:
        ValueError: `levels` is not a grid or its noise does not decrease; an untyped key; the number of keys differs
            from that of examples; a prediction that is undefined at pure noise; x has an integer dtype; not a solver or
            not a denoiser; start or stop outside 0..N; a step between equal levels before `stop`.
    """
    return _scan(denoise, solver, levels, x, key, start=start, stop=stop, remat=remat, progress=progress)[0]


def sample_path(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    trace: Callable[[Array, Level], Any] = lambda x, level: x,
    **options,
) -> tuple[Array, Any]:
    """`sample`, which also returns `trace(x, level)` after each step.

    Args:
        denoise, solver, levels, x, key: as for `sample`, as are all options.
        trace: (x, level) -> any pytree; the default keeps x itself.

    Returns:
        (x at the last level, the results of `trace` stacked along a leading axis N).

    Raises:
        ValueError: as for `sample`.
    """
    x, _, path = _scan(denoise, solver, levels, x, key, trace=trace, **options)
    return x, path


def sample_state(
    denoise: Denoiser, solver: Solver, levels: Level, x: Array, key: Array, **options
) -> tuple[Array, Any]:
    """`sample`, which also returns the solver's final state, e.g. the number of evaluations of `rk45`.

    Args:
        denoise, solver, levels, x, key: as for `sample`, as are all options.

    Returns:
        (x at the last level, the solver's state).

    Raises:
        ValueError: as for `sample`.
    """
    return _scan(denoise, solver, levels, x, key, **options)[:2]


def invert(denoise: Denoiser, levels: Level, x: Array, *, iterations: int = 1) -> Array:
    """Integrate x from the grid's last level back to its first: the inverse of `sample` with `solvers.ddim()`.

    A step of DDIM is explicit in x_t, which is unknown here: x_t / alpha_t = x_s / alpha_s + (sigma_t / alpha_t -
    sigma_s / alpha_s) eps_hat(x_t, t) is solved by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907), from
    eps_hat(x_s, t), whose first iterate is the usual DDIM inversion (Dhariwal and Nichol 2021, arXiv:2105.05233).

    Args:
        denoise: (x_t, level) -> x0_hat.
        levels: fields [N + 1], noisiest first, with alpha > 0; the last may be clean data.
        x: at the grid's last level, [B, ...].
        iterations: evaluations per step. More of them approach the exact inverse if the steps are short enough for the
            iteration to converge.

    Returns:
        x at the grid's first level, like x.

    Raises:
        ValueError: `levels` is not a grid, or begins at pure noise; iterations < 1; a denoiser that returns a learned
            variance, or x0_hat of another shape than x.
    """
    return invert_path(denoise, levels, x, iterations=iterations)[0]


def invert_path(denoise: Denoiser, levels: Level, x: Array, *, iterations: int = 1) -> Array:
    """`invert`, with x at all levels.

    Args:
        denoise, levels, x, iterations: as for `invert`.

    Returns:
        [N + 1, B, ...], noisiest first; the last is x.

    Raises:
        ValueError: as for `invert`.
    """
    check_denoiser("denoise", denoise)
    check_inexact("x", x)
    check_levels(levels)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not is_traced(levels.alpha) and np.asarray(levels.alpha)[0] == 0:
        raise ValueError("pure noise (alpha = 0) says nothing of x: invert to a level with alpha > 0")
    dtype, x = x.dtype, in_single(x)
    levels, denoise = typed_levels(levels, x), x0_of(denoise)

    def step(x: Array, pair: tuple[Level, Level]) -> tuple[Array, Array]:
        t, s = pair

        def iterate(x_t: Array, _: None) -> tuple[Array, None]:
            eps = from_x0(denoise(x_t, t), x_t, t).eps
            return t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * eps, None

        x_t = jax.lax.scan(iterate, x, length=iterations)[0]
        return x_t, x_t

    pairs = levels.at(slice(None, -1)), levels.at(slice(1, None))
    return jnp.concatenate([jax.lax.scan(step, x, pairs, reverse=True)[1], x[None]]).astype(dtype)


def _scan(
    denoise, solver: Solver, levels: Level, x: Array, key: Array, *, trace=None, start=None, stop=None, remat=False,
    progress=None,
):  # fmt: skip
    check_solver(solver)
    check_denoiser("denoise", denoise, next_level=solver.next_level)
    check_inexact("x", x)
    check_key(key, x.shape[:1])
    check_levels(levels, may_repeat=stop is not None, decreasing=solver.decreasing)
    n = levels.t.shape[0] - 1
    for name, step in (("start", start), ("stop", stop)):
        if step is not None and not is_traced(step) and not 0 <= np.asarray(step) <= n:
            raise ValueError(f"{name} must be a level of the grid, from 0 to {n}, got {step}")
    if stop is not None and not is_traced(stop) and (last := int(np.asarray(stop))):
        check_levels(levels.at(slice(last + 1)), decreasing=solver.decreasing)  # steps between equal levels give NaN
    seen = x[:, 0] if solver.particles else x
    check_pure_noise(denoise, levels, seen, start=0 if start is None else start, next_level=solver.next_level)
    dtype, x = x.dtype, in_single(x)
    levels = typed_levels(levels, x)
    chunk = ceil(n**0.5) if remat else n  # steps between two states that are kept
    steps = jnp.arange(-(-n // chunk) * chunk).reshape(-1, chunk)
    some = start is not None or stop is not None or steps.size > n  # else every step is taken

    step = checked_step(denoise, solver)

    def take(carry, i):
        x, state = carry
        x, state = step(fold_in(key, i), x, state, levels.at(i), levels.at(i + 1))
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        return x, state

    def body(carry, i):
        if some:
            taken = (i >= (0 if start is None else start)) & (i < (n if stop is None else jnp.minimum(stop, n)))
            # Under `vmap` a skipped step is computed and discarded: from the grid's first level, where nothing is NaN.
            carry = jax.lax.cond(taken, take, lambda carry, _: carry, carry, jnp.where(taken, i, 0))
        else:
            carry = take(carry, i)
        return carry, None if trace is None else trace(carry[0], levels.at(i + 1))

    carry = x, solver.init(x)
    if remat:
        again = partial(jax.checkpoint, prevent_cse=False)  # inside a scan there is nothing to prevent
        chunks = again(lambda carry, steps: jax.lax.scan(again(body), carry, steps))
        (x, state), path = jax.lax.scan(chunks, carry, steps)
        path = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], path)
    else:
        (x, state), path = jax.lax.scan(body, carry, steps[0])
    return x.astype(dtype), state, path


def in_single(x: Array) -> Array:
    """x, in float32 where it is in half precision: in it short steps are lost."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def checked_step(denoise: Denoiser, solver: Solver) -> Callable[..., tuple[Array, Any]]:
    """A solver's step with a denoiser, (key, x, state, cur, nxt) -> (x, state).

    Raises:
        ValueError: from the step, x0_hat of another shape than x, or a learned variance that the solver does not take.
    """

    def checked(x: Array, *ends: Level) -> Any:
        return check_shape(denoise(x, *ends), x)

    def step(key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> tuple[Array, Any]:
        try:
            return solver.step(checked, key, x, state, cur, nxt)
        except (TypeError, AttributeError) as error:
            ends = (cur, nxt) if solver.next_level else (cur,)
            if not solver.learned_variance and isinstance(jax.eval_shape(denoise, x, *ends), tuple):
                raise ValueError(
                    f"{solver!r} takes x0_hat, and denoise returns (x0_hat, frac), with a learned variance: use "
                    "parameterize.drop_variance(denoise)"
                ) from error
            raise

    return step


def x0_of(denoise: Denoiser) -> Denoiser:
    """The denoiser, with a check that it returns x0_hat.

    Raises:
        ValueError: from the denoiser, x0_hat of another shape than x, or a learned variance as well.
    """

    def checked(x: Array, level: Level) -> Array:
        x0 = check_shape(denoise(x, level), x)
        if isinstance(x0, tuple):
            raise ValueError(
                "denoise returns (x0_hat, frac), with a learned variance, and x0_hat is needed: use "
                "parameterize.drop_variance(denoise)"
            )
        return x0

    return checked


def check_shape(x0: Any, x: Array) -> Any:
    """Return what a denoiser gives; ValueError: x0_hat, or the share of the variance, is not like x."""
    for part in x0 if isinstance(x0, tuple) else (x0,):
        if jnp.shape(part) != x.shape:  # where it broadcasts, it would be sampled without a word
            raise ValueError(f"denoise must return x0_hat of the shape of x, {x.shape}, got {jnp.shape(part)}")
    return x0


def check_levels(levels: Level, *, may_repeat: bool = False, decreasing: bool = True) -> None:
    """Raise ValueError unless the levels are a grid: fields [N + 1], N >= 1, sigma / alpha decreasing.

    Values are checked only if they are concrete, and only with `decreasing`. With `may_repeat`, the last level may be
    repeated.
    """
    check_grid(levels)
    if not decreasing or is_traced(levels.alpha, levels.sigma):
        return
    alpha, sigma = (np.asarray(field, np.float64) for field in (levels.alpha, levels.sigma))
    angle = np.arctan2(sigma, alpha)  # rises with sigma / alpha, and is finite at both ends
    if may_repeat:
        angle = angle[: int(np.argmax(angle == angle[-1])) + 1]
    if not np.all(np.diff(angle) < 0):
        i = int(np.argmax(~(np.diff(angle) < 0)))
        raise ValueError(
            "the noise of a grid falls from its first level to its last: "
            f"at level {i} sigma / alpha is {sigma[i]:.6g} / {alpha[i]:.6g}, "
            f"at the next {sigma[i + 1]:.6g} / {alpha[i + 1]:.6g}"
        )


def check_pure_noise(
    denoise: Any,
    levels: Level,
    x: Array,
    *,
    start: int | Array = 0,
    next_level: bool = False,
    one_each: bool = False,
) -> None:
    """Raise what the denoiser raises at a concrete first level of pure noise, where some predictions are undefined.

    Inside a scan levels are traced, and a prediction like `eps` cannot check alpha > 0: this abstract call can, with a
    scalar level, or with `one_each` with one level per example.
    """
    if is_traced(levels, start):
        return
    start = int(np.asarray(start))  # it may be an array of JAX's, whose comparison would be traced
    if start == len(levels.t) - 1 or np.asarray(levels.alpha)[start] != 0:
        return
    at = np.full(len(x), start) if one_each else start
    ends = (levels.at(at), levels.at(at + 1)) if next_level else (levels.at(at),)
    jax.eval_shape(lambda x: denoise(x, *ends), x)
