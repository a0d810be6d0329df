"""Inversion of a picture into the noise of each step, from which any prompt draws (edit-friendly DDPM inversion)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_inexact
from jaxdiff.guidance.base import check_denoisers, split_variance
from jaxdiff.levels import Level, check_grid, posterior, q_sample, typed_levels
from jaxdiff.noise import check_key, fold_in, normal_like
from jaxdiff.solvers.base import Solver
from jaxdiff.types import Denoiser

__all__ = ["edit_friendly"]


def edit_friendly(
    denoise: Denoiser, levels: Level, x: Array, key: Array, *, start: int | Array = 0
) -> tuple[Array, Solver]:
    """A noisy picture, and a solver that leads it back to the picture (Huberman-Spiegelglas et al. 2023).

    arXiv:2304.06140, algorithm 1: x_t = alpha_t x_0 + sigma_t eps_t with independent eps_t at all levels, and what a
    step of DDPM must add to its mean to come from each of them to the next. With these in place of new noise the
    denoiser of the picture gives the picture again, guided or not, and that of another prompt what it becomes:

        x_t, solver = edit_friendly(denoise, levels, picture, key, start=start)
        edited = sample(other, solver, levels, x_t, key, start=start)

    Args:
        denoise: of what the picture shows.
        levels: fields [N + 1], noisiest first.
        x: the picture, at the grid's last level, [B, ...].
        key: one key, or [B] keys.
        start: the first step that is taken, in [0, N); a later one keeps more of the picture. May be traced.

    Returns:
        (x at the level `start`, a solver for the steps from `start` on, which draws no noise and has no order). The
        solver holds N arrays like x.

    Raises:
        ValueError: not a denoiser or a grid, keys of another number, an integer dtype.
    """
    check_denoisers(denoise=denoise)
    check_inexact("x", x)
    check_grid(levels)
    check_key(key, x.shape[:1])
    levels, n = typed_levels(levels, x), len(levels.t) - 1

    def noised(i: Array) -> Array:
        return jnp.where(i == n, x, q_sample(x, normal_like(fold_in(key, i), x), levels.at(i)))

    def mean(denoise: Denoiser, x: Array, cur: Level, nxt: Level) -> Array:
        return posterior(split_variance(denoise(x, cur))[0], x, cur, nxt)[0]

    def invert(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        (now, added), after = carry, noised(i + 1)
        return after, added.at[i].set(after - mean(denoise, now, levels.at(i), levels.at(i + 1)))

    first = noised(jnp.asarray(start))
    _, added = jax.lax.fori_loop(start, n, invert, (first, jnp.zeros((n, *x.shape), x.dtype)))

    def step(denoise: Denoiser, key: Array, x: Array, i: Array, cur: Level, nxt: Level):
        return mean(denoise, x, cur, nxt) + added[i], i + 1

    return first, Solver(lambda x: jnp.asarray(start, jnp.int32), step, order=None)
