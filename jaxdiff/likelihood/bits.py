"""Dequantization of discrete data, and bits per dimension of a density."""

from __future__ import annotations

from collections.abc import Callable
from math import log, log2

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import is_traced
from jaxdiff.noise import check_key

__all__ = ["bits_per_dim", "check_binned", "check_bins", "dequantize", "draw"]


def dequantize(key: Array, x: Array, *, bins: int = 256) -> Array:
    """Add uniform noise to discrete data, over its bins of [-1, 1] (Theis et al. 2015, arXiv:1511.01844, sec. 3.1).

    By Jensen's inequality, `bits_per_dim` of the result's mean log-density is an upper bound for the discrete data. Bin
    k is [2k/bins - 1, 2(k+1)/bins - 1): train the model on dequantized data, or on data of the same scale.

    Args:
        key: one key, or [B] keys.
        x: [B, ...], integers 0..bins-1, or floats on `bins` equally spaced values from -1 to 1.
        bins: number of values.

    Returns:
        like x, float.

    Raises:
        ValueError: values outside their range; bins < 2; an untyped key; the number of keys differs from that of
            examples.
    """
    check_bins(bins)
    x = jnp.asarray(x)
    integers = jnp.issubdtype(x.dtype, jnp.integer)
    low, high = (0, bins - 1) if integers else (-1, 1)
    if not is_traced(x) and x.size and not low <= x.min() <= x.max() <= high:
        raise ValueError(f"{x.dtype} data of {bins} bins lies in {low}..{high}, got {x.min()}..{x.max()}")
    dtype = jnp.result_type(float) if integers else x.dtype
    k = x.astype(dtype) if integers else jnp.round((x + 1) * (0.5 * (bins - 1)))
    return (k + draw(jax.random.uniform, key, x.shape, dtype)) * (2 / bins) - 1


def bits_per_dim(log_prob: Array, dims: int, *, bins: int | None = 256) -> Array:
    """Bits per dimension of continuous data, or of discrete data after `dequantize`, from the log-density.

    Args:
        log_prob: log-density in nats, [B].
        dims: number of dimensions of an example.
        bins: number of values of discrete data, whose bins have width 2 / bins. None for continuous data: the result is
            minus the log-density in bits, may be negative, and depends on the data's unit.

    Returns:
        [B].

    Raises:
        ValueError: dims < 1 or bins < 2.
    """
    if bins is not None:
        check_bins(bins)
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    bits = -log_prob / (dims * log(2))
    return bits if bins is None else bits + log2(bins / 2)


def check_bins(bins: int) -> None:
    """Raise ValueError unless `bins` is an integer, at least 2."""
    if not isinstance(bins, int | np.integer) or bins < 2:
        raise ValueError(f"bins, the number of values of the data, must be an integer of at least 2, got {bins!r:.80}")


def check_binned(x: Array, bins: int) -> None:
    """Raise ValueError unless x lies on `bins` equally spaced values from -1 to 1; traced values pass."""
    check_bins(bins)
    if is_traced(x) or not x.size:
        return
    k = (np.asarray(x, np.float64) + 1) * (0.5 * (bins - 1))
    rounding = max(1e-3, float(bins * jnp.finfo(x.dtype).eps))  # rounding error of the dtype of x
    off = np.maximum(np.abs(k - np.clip(np.round(k), 0, bins - 1)) - rounding, 0)
    if np.any(off > 0):
        worst = np.asarray(x, np.float64).reshape(-1)[int(np.argmax(off))]
        raise ValueError(
            f"the data lies on {bins} equally spaced values from -1 to 1, got {worst:.6g}; "
            "for continuous data use continuous_bound with bins=None"
        )


def draw(random: Callable, key: Array, shape: tuple[int, ...], dtype) -> Array:
    """`random(key, shape, dtype)` with one key, or one key per example, as in `noise.normal_like`."""
    check_key(key, shape[:1])
    if key.ndim == 0:
        return random(key, shape, dtype)
    return jax.vmap(lambda k: random(k, shape[1:], dtype))(key)
