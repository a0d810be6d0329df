"""Langevin dynamics at the grid's levels: annealed (Song and Ermon 2019), or as a corrector (Song et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0, safe_sqrt
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.solvers.base import Solver, check_one_level, check_solver, init_empty, select_level
from jaxdiff.solvers.sde import reverse_diffusion
from jaxdiff.types import Denoiser

__all__ = ["annealed_langevin", "predictor_corrector"]


@factory
def predictor_corrector(predictor: Solver | None = None, steps: int = 1, snr: float | Array = 0.16) -> Solver:
    """A solver's step, then Langevin steps at the new level (Song et al. 2020, algorithms 2 to 5).

    arXiv:2011.13456. x + e score + sqrt(2 e) z with e = 2 a (snr |z| / |score|)^2, a = (alpha_t / alpha_s)^2. The norms
    are those of each example, not means over the batch as in the paper's code: examples do not interact. It assumes
    that the norms of scores vary little, as in high dimension d: the error of the distribution is about 1 / d.

    Args:
        predictor: the solver; None is `reverse_diffusion()`.
        steps: number of Langevin steps, the paper's M.
        snr: the paper's r; may be traced.

    Returns:
        a solver with `steps` evaluations more than the predictor's, and no Langevin step at sigma = 0. It has no order,
        since its error does not vanish for short steps.

    Raises:
        ValueError: steps < 1, snr a number that is not positive, or a solver of flow maps.
    """
    _check(steps, "snr", snr)
    inner = reverse_diffusion() if predictor is None else predictor
    check_solver(inner)
    check_one_level(inner)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, state = inner.step(denoise, fold_in(key, 0), x, state, cur, nxt)
        not_last = nxt.sigma > 0
        kept = jnp.square(cur.alpha / nxt.alpha)

        def size(z: Array, score: Array) -> Array:
            square = _square(score)
            return kept * 2 * jnp.square(jnp.asarray(snr, x.dtype)) * _square(z) / jnp.where(square > 0, square, 1)

        corrected, _ = _langevin(denoise, fold_in(key, 1), x, select_level(not_last, cur, nxt), size, steps)
        return jnp.where(not_last, corrected, x), state

    nfe = None if inner.nfe is None else inner.nfe + steps
    return inner._replace(step=step, order=None, nfe=nfe, stochastic=True)


@factory
def annealed_langevin(steps: int = 5, step_size: float | Array = 0.2) -> Solver:
    """Langevin steps x + e/2 score + sqrt(e) z at each level, e = step_size sigma^2 (Song and Ermon 2019, algorithm 1).

    arXiv:1907.05600, whose epsilon / sigma_L^2 is `step_size`. The paper's process is VE; on others x / alpha is kept
    from level to level. There are no steps at the first level, where x already has its distribution.

    Args:
        steps: number of Langevin steps at a level, the paper's T.
        step_size: size of a Langevin step in units of sigma^2; may be traced. Smaller steps have a smaller error, and
            more of them are needed.

    Returns:
        a solver with `steps` evaluations per step; the step to sigma = 0 returns x0_hat (Jolicoeur-Martineau et al.
        2020, arXiv:2009.05475). It has no order.

    Raises:
        ValueError: steps < 1, or step_size a number that is not positive.
    """
    _check(steps, "step_size", step_size)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        not_last = nxt.sigma > 0
        at = select_level(not_last, cur, nxt)
        pure = cur.alpha == 0  # there is no data to keep: the noise is scaled to the next level
        scale = jnp.where(pure, at.sigma / cur.sigma, at.alpha / jnp.where(pure, 1, cur.alpha))
        # In the step to clean data x does not move, so that every evaluation returns the result.
        e = jnp.where(not_last, 0.5 * jnp.asarray(step_size, x.dtype) * jnp.square(at.sigma), 0)
        moved, x0 = _langevin(denoise, key, scale * x, at, lambda z, score: e, steps)
        return jnp.where(not_last, moved, x0), state

    return Solver(init_empty, step, order=None, nfe=steps, stochastic=True)


def _langevin(
    denoise, key: Array, x: Array, level: Level, size: Callable[[Array, Array], Array], steps: int
) -> tuple[Array, Array]:
    """Langevin steps x + e score + sqrt(2 e) z, e = size(z, score); and x0_hat of the last evaluation."""

    def body(carry: tuple[Array, Array], i: Array):
        x, _ = carry
        out = denoise(x, level)
        x0, eps = from_x0(out[0] if isinstance(out, tuple) else out, x, level)  # without a learned variance
        score, z = -eps / level.sigma, normal_like(fold_in(key, i), x)
        e = size(z, score)
        return (x + e * score + safe_sqrt(2 * e) * z, x0), None

    return jax.lax.scan(body, (x, jnp.zeros_like(x)), jnp.arange(steps))[0]


def _square(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)


def _check(steps: int, name: str, value: float | Array) -> None:
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps is an integer of at least 1, got {steps!r:.80}")
    if isinstance(value, (int, float)) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
