"""Guidance by the part of the difference that is orthogonal to the conditional answer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, norm, scale_at, split_variance
from jaxdiff.levels import Level
from jaxdiff.solvers.base import Solver
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

    arXiv:2410.02416. The difference cond - uncond of the two x0_hat, shortened to `norm_threshold`, is split along and
    across cond's x0_hat, each example for itself: the parallel part is what saturates. eta = 1 without a radius is
    `cfg`.

    Args:
        cond, uncond, scale: as for `cfg`.
        eta: share of the parallel part that is kept; as scale.
        norm_threshold: largest Euclidean norm of an example's difference, the paper's r; None: no limit. May be traced.

    Returns:
        the guided denoiser, two evaluations a call; a learned variance is the conditional model's.

    Raises:
        ValueError: as for `cfg`, or a radius that is not positive.
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
    """A solver with `apg` and its reverse momentum: sum <- cond - uncond + momentum sum takes the difference's place.

    A denoiser remembers nothing, so this one wraps the solver, whose state carries the sum (Sadat et al. 2024); the
    denoiser that `sample` is given is the conditional one. The sum grows once a step, by the difference at the step's
    start: a solver that never asks there, such as `heun` with churn, costs two evaluations a step more.

    Args:
        solver: the solver to guide.
        uncond, scale, eta, norm_threshold: as for `apg`.
        momentum: the paper's beta, in [-1, 1], below 0 to move away from earlier differences; may be traced.

    Returns:
        the guided solver.

    Raises:
        ValueError: as for `apg`, or momentum outside [-1, 1].
    """
    _check(uncond, scale=scale, eta=eta, norm_threshold=norm_threshold)
    check_number("momentum", momentum, low=-1, high=1)

    def init(x: Array) -> Any:
        return solver.init(x), jnp.zeros_like(x)

    def step(denoise: Denoiser, key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> tuple[Array, Any]:
        inner, past = state[0], jnp.asarray(momentum, x.dtype) * state[1]

        def differ(x: Array, level: Level) -> tuple[Any, Array]:
            cond = denoise(x, level)
            return cond, split_variance(cond)[0] - split_variance(uncond(x, level))[0]

        begun = differ(x, cur)

        def guided(y: Array, level: Level) -> Any:
            # Most solvers ask first at the step's start, which has been evaluated.
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
        raise ValueError(f"radius must be above 0, got {norm_threshold}")


def _project(diff: Array, onto: Array, eta: Array, norm_threshold: float | Array | None) -> Array:
    axes = tuple(range(1, diff.ndim))
    if norm_threshold is not None:
        length, most = norm(diff), jnp.asarray(norm_threshold, diff.dtype)
        diff = diff * jnp.where(length > most, most / jnp.where(length > most, length, 1), 1)
    square = jnp.sum(jnp.square(onto), axis=axes, keepdims=True)
    along = jnp.sum(diff * onto, axis=axes, keepdims=True) / jnp.where(square > 0, square, 1)
    return diff + (eta - 1) * along * onto
