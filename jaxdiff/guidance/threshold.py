"""Thresholding: denoisers whose x0_hat is within the data's range."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.guidance.base import check_denoisers, join_variance, split_variance
from jaxdiff.levels import Level, append_axes
from jaxdiff.types import Denoiser

__all__ = ["clip", "dynamic_threshold"]


def clip(denoise: Denoiser, low: float | Array = -1.0, high: float | Array = 1.0) -> Denoiser:
    """Static thresholding: x0_hat clipped to the data's range (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3).

    Args:
        denoise: the denoiser.
        low, high: the data's range; numbers, or arrays that broadcast against x; may be traced.

    Returns:
        the denoiser.

    Raises:
        ValueError: low >= high.
    """
    check_denoisers(denoise=denoise)
    if not any(isinstance(bound, jax.Array) for bound in (low, high)) and not np.all(np.less(low, high)):
        raise ValueError(f"a range has low < high, got low = {low} and high = {high}")

    def clipped(x: Array, level: Level) -> Any:
        x0, *variance = split_variance(denoise(x, level))
        return join_variance(jnp.clip(x0, jnp.asarray(low, x0.dtype), jnp.asarray(high, x0.dtype)), *variance)

    return clipped


def dynamic_threshold(
    denoise: Denoiser, quantile: float | Array = 0.995, *, max_scale: float | Array | None = None
) -> Denoiser:
    """Dynamic thresholding: clip to [-s, s] and divide by s, for data in [-1, 1] (Saharia et al. 2022, sec. 2.3).

    s is a quantile of |x0_hat| within each example, at least 1. arXiv:2205.11487.

    Args:
        denoise: the denoiser.
        quantile: level of the quantile, in (0, 1]; may be traced.
        max_scale: upper bound of s, at least 1; None is no bound. May be traced.

    Returns:
        the denoiser.

    Raises:
        ValueError: quantile outside (0, 1], or max_scale below 1.
    """
    check_denoisers(denoise=denoise)
    if not isinstance(quantile, jax.Array) and not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
    if max_scale is not None and not isinstance(max_scale, jax.Array) and not max_scale >= 1:
        raise ValueError(f"max_scale must be at least 1, since data lies in [-1, 1], got {max_scale}")

    def thresholded(x: Array, level: Level) -> Any:
        x0, *variance = split_variance(denoise(x, level))
        s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), jnp.asarray(quantile, x0.dtype), axis=1)
        s = jnp.clip(s, 1, None if max_scale is None else jnp.asarray(max_scale, x0.dtype))
        s = append_axes(s, x0.ndim)
        return join_variance(jnp.clip(x0, -s, s) / s, *variance)

    return thresholded
