"""The keys of a seed: one for each example, whatever the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.options import SEED

__all__ = ["example_keys", "keys_at", "seed_key"]


def seed_key(seed: int) -> Array:
    """The key of a seed, of which all 64 bits count; `jax.random.key` takes 32 of them by default.

    Args:
        seed: 0 to 2^64 - 1. Below 2^32 the key is that of `jax.random.key`.

    Raises:
        ValueError: another seed.
    """
    if SEED.check("seed", seed) < 2**32:
        return jax.random.key(seed)
    with jax.enable_x64(True):
        return jax.random.key(np.uint64(seed))


def example_keys(seed: int, count: int, first: int = 0) -> Array:
    """One key for each of the examples first .. first + count - 1 of a seed."""
    return keys_at(seed_key(seed), jnp.arange(first, first + count))


def keys_at(key: Array, index: Array) -> Array:
    """The keys of the examples with these numbers [B] of a seed, whose key this is."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
