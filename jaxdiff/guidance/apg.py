"""Adaptive projected guidance: the part of the guidance term orthogonal to the conditional x0_hat."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, norm, scale_at, split_variance
from jaxdiff.levels import Level
from jaxdiff.solvers.base import Solver, check_one_level, check_solver
from jaxdiff.types import Denoiser

__all__ = ["apg", "apg_momentum"]


def apg(
    cond: Denoiser,
    uncond: Denoiser,
    scale: Scale,
    *,
    eta: Scale = 0.0,
    norm_threshold: float | Array | None = None,
) -> Denoiser:
    """Adaptive projected guidance: cond + (scale - 1) (orthogonal + eta parallel) (Sadat et al. 2024).

    arXiv:2410.02416. For each example, the difference cond - uncond of the two x0_hat is shortened to `norm_threshold`
    and split into parts parallel and orthogonal to cond's x0_hat. The parallel part causes saturated colours. eta = 1
    without a threshold is `cfg`.

    Args:
        cond, uncond, scale: as for `cfg`.
        eta: factor of the parallel part; like scale.
        norm_threshold: largest Euclidean norm of an example's difference, the paper's r; None is no threshold. May be
            traced.

    Returns:
        the guided denoiser, two evaluations per call; a learned variance is the conditional model's.

    Raises:
        ValueError: as for `cfg`, or norm_threshold <= 0.
    """
    check_denoisers(cond=cond)
    _check(uncond, scale=scale, eta=eta, norm_threshold=norm_threshold)

    def denoise(x: Array, level: Level) -> Any:
        x0, *variance = split_variance(cond(x, level))
        guidance_term = _project(x0 - split_variance(uncond(x, level))[0], x0, scale_at(eta, x, level), norm_threshold)
        return join_variance(x0 + (scale_at(scale, x, level) - 1) * guidance_term, *variance)

    return denoise


@factory
def apg_momentum(
    solver: Solver,
    uncond: Denoiser,
    scale: Scale,
    *,
    momentum: float | Array = -0.5,
    eta: Scale = 0.0,
    norm_threshold: float | Array | None = None,
) -> Solver:
    """A solver with `apg` and reverse momentum: the difference is replaced by sum <- cond - uncond + momentum sum.

    A denoiser has no state, so this wraps the solver, whose state carries the sum (Sadat et al. 2024); pass the
    conditional denoiser to `sample`. The sum is updated once per step, by the difference at the step's start. A solver
    that does not evaluate the denoiser there, such as `heun` with churn, costs two more evaluations per step.

    Args:
        solver: the solver to guide.
        uncond, scale, eta, norm_threshold: as for `apg`.
        momentum: the paper's beta, in [-1, 1], negative to move away from earlier differences; may be traced.

    Returns:
        the guided solver.

    Raises:
        ValueError: as for `apg`, momentum outside [-1, 1], or a solver of flow maps.
    """
    check_solver(solver)
    _check(uncond, scale=scale, eta=eta, norm_threshold=norm_threshold)
    check_number("momentum", momentum, low=-1, high=1)
    check_one_level(solver)

    def init(x: Array) -> Any:
        return solver.init(x), jnp.zeros_like(x)

    def step(denoise: Denoiser, key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> tuple[Array, Any]:
        inner, past = state[0], jnp.asarray(momentum, x.dtype) * state[1]

        def differ(x: Array, level: Level) -> tuple[Any, Array]:
            cond = denoise(x, level)
            return cond, split_variance(cond)[0] - split_variance(uncond(x, level))[0]

        begun = differ(x, cur)

        def guided(y: Array, level: Level) -> Any:
            # Most solvers evaluate the step's start first, where the difference is known.
            cond, diff = begun if y is x and level is cur else differ(y, level)
            x0, *variance = split_variance(cond)
            guidance_term = _project(diff + past, x0, scale_at(eta, y, level), norm_threshold)
            return join_variance(x0 + (scale_at(scale, y, level) - 1) * guidance_term, *variance)

        moved, inner = solver.step(guided, key, x, inner, cur, nxt)
        return moved, (inner, begun[1] + past)

    return solver._replace(init=init, step=step)


def _check(uncond: Denoiser, *, scale: Scale, eta: Scale, norm_threshold: float | Array | None) -> None:
    check_denoisers(uncond=uncond)
    check_number("scale", scale)
    check_number("eta", eta)
    if norm_threshold is not None and not isinstance(norm_threshold, jax.Array) and not norm_threshold > 0:
        raise ValueError(f"norm_threshold must be above 0, got {norm_threshold}")


def _project(diff: Array, onto: Array, eta: Array, norm_threshold: float | Array | None) -> Array:
    axes = tuple(range(1, diff.ndim))
    if norm_threshold is not None:
        length, most = norm(diff), jnp.asarray(norm_threshold, diff.dtype)
        diff = diff * jnp.where(length > most, most / jnp.where(length > most, length, 1), 1)
    square = jnp.sum(jnp.square(onto), axis=axes, keepdims=True)
    along = jnp.sum(diff * onto, axis=axes, keepdims=True) / jnp.where(square > 0, square, 1)
    return diff + (eta - 1) * along * onto
