"""Exponential moving averages of parameters: a decay is a function of the number of updates made so far."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Decay = Callable[[jax.Array], jax.Array]  # int32 step, 0 at the first update -> float32 decay


def constant(decay: float) -> Decay:
    """Use the same decay at every update.

    Args:
        decay: the share of the old average that is kept, in [0, 1).

    Raises:
        ValueError: decay is outside [0, 1).
    """
    _check(decay)
    return lambda step: jnp.full((), decay, jnp.float32)


def warmup(max_decay: float, offset: float = 10.0) -> Decay:
    """Start with a short memory that grows with training: min(max_decay, (1 + step) / (offset + step)).

    Args:
        max_decay: the decay that is reached in the end, in [0, 1).
        offset: larger is a shorter memory at first; greater than 1.

    Raises:
        ValueError: max_decay is outside [0, 1), or offset is not greater than 1.
    """
    _check(max_decay)
    if not offset > 1:
        raise ValueError(f"offset must be greater than 1, got {offset}")

    def decay(step: jax.Array) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        return jnp.minimum(max_decay, (1.0 + count) / (offset + count))

    return decay


def update(average: Any, params: Any, decay: jax.Array) -> Any:
    """Move the average towards the parameters: decay * average + (1 - decay) * params, in float32.

    Args:
        average: tree of float32 arrays.
        params: a tree like `average`.
        decay: float32 scalar.

    Returns:
        The new average, float32.
    """

    # average + (1 - decay) * difference: exact where both agree, which decay * average + ... is not.
    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        old = old.astype(jnp.float32)
        return old + (1.0 - decay) * (new.astype(jnp.float32) - old)

    return jax.tree.map(move, average, params)


def _check(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"an average's decay must be in [0, 1), got {decay}")
