"""Gaussian noise with one key for all, or one key per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import Level

__all__ = ["check_key", "fold_in", "normal_like", "prior"]


def check_key(key: Array) -> None:
    """Raise ValueError unless `key` is a typed JAX key, or a vector of them (one per example)."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim > 1:
        raise ValueError(f"expected a key of jax.random.key(seed), or a vector of one key per example, got {key!r:.80}")


def normal_like(key: Array, x: Array) -> Array:
    """Standard normal noise with the shape and type of x.

    With one key per example, an example's noise depends on its own key only: not on its place in the batch, on the
    batch's size, or on how it is sharded.

    Args:
        key: one key, or [B] keys.
        x: [B, ...].
    Returns:
        noise like x.
    Raises:
        ValueError: `key` is no typed key, or there are not as many keys as examples.
    """
    return _normal(key, x.shape, x.dtype)


def prior(levels: Level, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw x_T: noise with the standard deviation of the grid's noisiest level.

    Args:
        levels: a grid, noisiest first; fields [N + 1].
        key: one key, or [B] keys.
        shape: of x_T, [B, ...].
        dtype: of x_T.
    Returns:
        x_T ~ N(0, sigma_0^2 I). The data's share alpha_0 x_0 is left out, as all samplers do: start where it is small.
    """
    return levels.sigma[0].astype(dtype) * _normal(key, tuple(shape), dtype)


def fold_in(key: Array, data: Array | int) -> Array:
    """`jax.random.fold_in`, of one key or of each key in a vector."""
    return jax.random.fold_in(key, data) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def _normal(key: Array, shape: tuple[int, ...], dtype) -> Array:
    check_key(key)
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    if key.shape != shape[:1]:
        raise ValueError(f"one key per example: got {key.shape[0]} keys for {shape[:1] or 'no'} examples")
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)
