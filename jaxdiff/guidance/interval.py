"""Guidance in an interval of noise levels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.guidance.base import check_denoisers, sigma_ratio
from jaxdiff.levels import Level, append_axes
from jaxdiff.types import Denoiser

__all__ = ["interval"]


def interval(guided: Denoiser, plain: Denoiser, low: float | Array, high: float | Array) -> Denoiser:
    """Guidance where low < sigma / alpha <= high, none elsewhere (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    With one level for all examples, only one of the two denoisers is evaluated: outside the interval a step costs one
    evaluation instead of two. With a level or bounds per example, and under `vmap`, both are evaluated.

    Args:
        guided: the denoiser inside the interval, e.g. `cfg(cond, uncond, 3.0)`.
        plain: the denoiser outside, e.g. `cond`; must return a learned variance if `guided` does.
        low, high: bounds of sigma / alpha; numbers, or [B]; may be traced. 0 and inf are no bounds.

    Returns:
        the denoiser.

    Raises:
        ValueError: low >= high, or low < 0.
    """
    check_denoisers(guided=guided, plain=plain)
    concrete = not any(isinstance(bound, jax.Array) for bound in (low, high))
    if concrete and not (np.all(np.less_equal(0, low)) and np.all(np.less(low, high))):
        raise ValueError(f"an interval of sigma / alpha has 0 <= low < high, got low = {low} and high = {high}")

    def denoise(x: Array, level: Level) -> Any:
        at = sigma_ratio(level)
        inside = (jnp.asarray(low, at.dtype) < at) & (at <= jnp.asarray(high, at.dtype))
        if inside.ndim == 0:
            # The level is closed over, not an operand: if it is concrete, predictions can check that alpha > 0.
            return jax.lax.cond(inside, lambda x: guided(x, level), lambda x: plain(x, level), x)
        inside = append_axes(inside, x.ndim)
        return jax.tree.map(lambda g, p: jnp.where(inside, g, p), guided(x, level), plain(x, level))

    return denoise
