"""Guidance by the part of the difference that is orthogonal to the conditional answer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.guidance.base import Scale, answer, at_level, check_denoisers, check_number, norm, parts
from jaxdiff.levels import Level
from jaxdiff.parameterize import Denoiser

__all__ = ["apg"]


def apg(
    cond: Denoiser,
    uncond: Denoiser,
    scale: Scale,
    *,
    eta: Scale = 0.0,
    radius: float | Array | None = None,
) -> Denoiser:
    """Adaptive projected guidance: cond + (scale - 1) (orthogonal + eta parallel) (Sadat et al. 2024).

    arXiv:2410.02416. The difference cond - uncond of the two x0_hat, shortened to `radius`, is split along and across
    cond's x0_hat, each example for itself: the parallel part is what saturates. eta = 1 without a radius is `cfg`.

    Args:
        cond, uncond, scale: as for `cfg`.
        eta: share of the parallel part that is kept; as scale.
        radius: largest Euclidean norm of an example's difference, the paper's r; None: no limit. May be traced.
    Returns:
        the guided denoiser, two evaluations a call; a learned variance is the conditional model's.
    Raises:
        ValueError: as for `cfg`, or a radius that is not positive.
    """
    check_denoisers(cond=cond, uncond=uncond)
    check_number("scale", scale)
    check_number("eta", eta)
    if radius is not None and not isinstance(radius, jax.Array) and not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")

    def denoise(x: Array, level: Level) -> Any:
        x0, *variance = parts(cond(x, level))
        pull = _project(x0 - parts(uncond(x, level))[0], x0, at_level(eta, x, level), radius)
        return answer(x0 + (at_level(scale, x, level) - 1) * pull, *variance)

    return denoise


def _project(diff: Array, onto: Array, eta: Array, radius: float | Array | None) -> Array:
    axes = tuple(range(1, diff.ndim))
    if radius is not None:
        length, most = norm(diff), jnp.asarray(radius, diff.dtype)
        diff = diff * jnp.where(length > most, most / jnp.where(length > most, length, 1), 1)
    square = jnp.sum(jnp.square(onto), axis=axes, keepdims=True)
    along = jnp.sum(diff * onto, axis=axes, keepdims=True) / jnp.where(square > 0, square, 1)
    return diff + (eta - 1) * along * onto
