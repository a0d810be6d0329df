"""CFG-Zero*: classifier-free guidance of a flow, with an optimized scale and no first steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, scale_at, split_variance
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser

__all__ = ["cfg_zero_star"]


def cfg_zero_star(cond: Denoiser, uncond: Denoiser, scale: Scale, *, zero_init: float | Array = 0.96) -> Denoiser:
    """CFG-Zero*: s u + scale (c - s u) on velocities, s = <c, u> / |u|^2 (Fan et al. 2025, arXiv:2503.18886).

    c and u are an example's conditional and unconditional velocities eps - x_0. The velocity is 0 at the noisiest
    levels, where x does not move: the first 4 % of the steps in the paper, here given by the flow's time sigma / (alpha
    + sigma). On other processes, this is applied to the flow of x / (alpha + sigma).

    Args:
        cond, uncond, scale: as for `cfg`.
        zero_init: the velocity is 0 above this sigma / (alpha + sigma), in [0, 1]; 1 is off. May be traced.

    Returns:
        the guided denoiser, two evaluations per call; a learned variance is the conditional model's.

    Raises:
        ValueError: as for `cfg`, or zero_init outside [0, 1].
    """
    check_denoisers(cond=cond, uncond=uncond)
    check_number("scale", scale)
    check_number("zero_init", zero_init, low=0, high=1)

    def denoise(x: Array, level: Level) -> Any:
        at = level.expand_to(x)
        total = at.alpha + at.sigma
        x0, *variance = split_variance(cond(x, level))
        # sigma (eps - x_0): the factor cancels in s, and may be 0.
        c, u = x - total * x0, x - total * split_variance(uncond(x, level))[0]
        u = _along(c, u) * u
        moved = u + scale_at(scale, x, level) * (c - u)
        return join_variance(
            (x - jnp.where(at.sigma > jnp.asarray(zero_init, x.dtype) * total, 0, moved)) / total, *variance
        )

    return denoise


def _along(c: Array, u: Array) -> Array:
    dot, square = (jnp.sum(a * u, axis=tuple(range(1, u.ndim)), keepdims=True) for a in (c, u))
    return dot / jnp.where(square > 0, square, 1)
