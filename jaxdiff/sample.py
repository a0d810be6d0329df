"""Sampling: one `lax.scan` of a solver over a grid of levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import Level
from jaxdiff.noise import check_key, fold_in
from jaxdiff.solvers.base import Solver

__all__ = ["check_levels", "sample", "sample_path"]

Denoiser = Callable[[Array, Level], Array]


def sample(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    progress: Callable[[Array], None] | None = None,
) -> Array:
    """Carry x from the grid's first level to its last.

    Call it inside `jax.jit`: everything but the solver and the shapes may be traced, so that turning guidance, eta,
    the grid's values, the condition or the key compiles nothing new, and compile time does not grow with N.

    Args:
        denoise: (x_t, level) -> x0_hat; see `parameterize.denoiser` and `guidance`.
        solver: one of `solvers`, or yours.
        levels: fields [N + 1], noisiest first; see `grids`.
        x: x_T, [B, ...]; see `noise.prior`.
        key: one key; or [B] keys, and then an example depends on its own key alone.
        progress: called on the host with the number of steps done, after each step.
    Returns:
        x at the last level, like x.
    Raises:
        ValueError: levels that are no grid or do not fall; an untyped key; a prediction undefined at pure noise.
    """
    return _scan(denoise, solver, levels, x, key, trace=None, progress=progress)[0]


def sample_path(
    denoise: Denoiser,
    solver: Solver,
    levels: Level,
    x: Array,
    key: Array,
    *,
    trace: Callable[[Array, Level], Any] = lambda x, level: x,
    progress: Callable[[Array], None] | None = None,
) -> tuple[Array, Any]:
    """`sample`, and what `trace` says of x and its level after each step.

    Args:
        denoise, solver, levels, x, key, progress: as for `sample`.
        trace: (x, level) -> any pytree; the default keeps x itself.
    Returns:
        (x at the last level, trace's answers stacked along a leading axis N).
    Raises:
        ValueError: as for `sample`.
    """
    return _scan(denoise, solver, levels, x, key, trace=trace, progress=progress)


def _scan(denoise, solver: Solver, levels: Level, x: Array, key: Array, *, trace, progress):
    check_key(key)
    check_levels(levels)
    _try_pure_noise(denoise, levels, x)

    def body(carry, i_cur_nxt):
        x, state = carry
        i, cur, nxt = i_cur_nxt
        x, state = solver.step(denoise, fold_in(key, i), x, state, cur, nxt)
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        return (x, state), None if trace is None else trace(x, nxt)

    # Solvers compute at x's precision; a level's time may be an integer index and stays one.
    levels = jax.tree.map(jnp.asarray, levels)
    levels = levels._replace(alpha=levels.alpha.astype(x.dtype), sigma=levels.sigma.astype(x.dtype))
    cur, nxt = Level(*(field[:-1] for field in levels)), Level(*(field[1:] for field in levels))
    (x, _), path = jax.lax.scan(body, (x, solver.init(x)), (jnp.arange(cur.t.shape[0]), cur, nxt))
    return x, path


def check_levels(levels: Level) -> None:
    """Raise ValueError unless the levels are a grid: fields [N + 1], N >= 1, sigma / alpha falling.

    Values are looked at only where they are concrete.
    """
    shapes = {np.shape(field) for field in levels}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes))[0] < 2:
        raise ValueError(f"a grid is a Level whose fields all have shape [N + 1], N >= 1, got shapes {shapes}")
    if any(isinstance(field, jax.core.Tracer) for field in (levels.alpha, levels.sigma)):
        return
    alpha, sigma = (np.asarray(field, np.float64) for field in (levels.alpha, levels.sigma))
    angle = np.arctan2(sigma, alpha)  # rises with sigma / alpha, and is finite at both ends
    if not np.all(np.diff(angle) < 0):
        i = int(np.argmax(~(np.diff(angle) < 0)))
        raise ValueError(
            "the noise of a grid falls from its first level to its last: "
            f"at level {i} sigma / alpha is {sigma[i]:.6g} / {alpha[i]:.6g}, "
            f"at the next {sigma[i + 1]:.6g} / {alpha[i + 1]:.6g}"
        )


def _try_pure_noise(denoise: Denoiser, levels: Level, x: Array) -> None:
    # Inside the scan levels are traced, where a row like `eps` cannot see that alpha = 0. Where the grid starts there
    # and says so, an abstract call shows the concrete level to the row, which then refuses.
    if any(isinstance(field, jax.core.Tracer) for field in levels):
        return
    with jax.ensure_compile_time_eval():  # under `jit` indexing would be traced too
        first = Level(*(jnp.asarray(field)[0] for field in levels))
    if np.asarray(first.alpha) == 0:
        jax.eval_shape(lambda x: denoise(x, first), x)
