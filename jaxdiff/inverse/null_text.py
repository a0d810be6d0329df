"""Null conditions, one a level, by which guided DDIM draws a picture again (null-text inversion)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_inexact
from jaxdiff.guidance.base import split_variance
from jaxdiff.inverse.operators.base import check_count
from jaxdiff.levels import Level, check_grid, from_x0, typed_levels
from jaxdiff.types import Denoiser

__all__ = ["null_text"]


def null_text(
    guided: Callable[[Any], Denoiser], levels: Level, path: Array, null: Any, optimizer: Any, *, iterations: int = 10
) -> tuple[Callable[[Level], Any], Array]:
    """Fit the null condition of each level, so that guidance leads along the path of a picture's inversion.

    Mokady et al. 2022 (arXiv:2211.09794), algorithm 1: inversion is right without guidance only. With a scale w > 1 the
    null condition of a step is moved until the step of DDIM ends where the path does; the next level begins there. The
    picture's prompt then draws the picture, and another one what becomes of it:

        path = invert_path(denoise, levels, picture)
        null_at, _ = null_text(guided, levels, path, null, optax.adam(1e-2))
        edited = sample(lambda x, level: other(null_at(level))(x, level), ddim(), levels, path[0], key)

    Args:
        guided: null condition -> the guided denoiser of the picture's prompt.
        levels: fields [N + 1], noisiest first.
        path: the picture at each level, [N + 1, B, ...], noisiest first: by `invert_path`, without guidance.
        null: the null condition to begin with, a pytree of float arrays.
        optimizer: of optax, or anything with its `init` and `update`.
        iterations: updates a level.

    Returns:
        (level -> its null condition; the picture that these draw, like path[-1]).

    Raises:
        ValueError: `guided` is not a function, not a grid, a path of another length, iterations < 1.
    """
    check_function("guided", guided, "(null) -> denoiser")
    check_grid(levels)
    check_inexact("path", path)
    check_count("iterations", iterations, 1)
    if len(path) != len(levels.t):
        raise ValueError(f"the path has the picture at each of the {len(levels.t)} levels, got {len(path)}")
    levels = typed_levels(levels, path)

    def ddim(null: Any, x: Array, cur: Level, nxt: Level) -> Array:
        x0, eps = from_x0(split_variance(guided(null)(x, cur))[0], x, cur)
        return nxt.alpha * x0 + nxt.sigma * eps

    def fit(carry: tuple[Any, Array], inputs: tuple[Level, Level, Array]) -> tuple[tuple[Any, Array], Any]:
        (null, x), (cur, nxt, target) = carry, inputs

        def update(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            null, state = carry
            grad = jax.grad(lambda null: jnp.sum(jnp.square(ddim(null, x, cur, nxt) - target)))(null)
            change, state = optimizer.update(grad, state, null)
            return (jax.tree.map(jnp.add, null, change), state), None

        (null, _), _ = jax.lax.scan(update, (null, optimizer.init(null)), length=iterations)
        return (null, ddim(null, x, cur, nxt)), null

    steps = levels.at(slice(None, -1)), levels.at(slice(1, None)), path[1:]
    (_, x), nulls = jax.lax.scan(fit, (null, path[0]), steps)

    def null_at(level: Level) -> Any:
        return jax.tree.map(lambda a: a[jnp.argmin(jnp.abs(levels.t[:-1] - level.t))], nulls)

    return null_at, x
