"""Random bits by hashing positions: cheap to draw, and cheap to compile.

jax.random's generator compiles anew for each shape, about a quarter second each on a CPU and seconds on a TPU. Initial
weights and dropout masks do not need its quality, and should not pay its cost.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import Array


def random_bits(words: Iterable[Array], shape: tuple[int, ...]) -> Array:
    """Draw independent integers, uniform on 0 .. 2^32 - 1, by hashing each position with a key.

    Args:
        words: uint32 scalars of a random key, see `jax.random.key_data`.
        shape: of the result; the numbers repeat after 2^32.

    Returns:
        uint32 numbers, the same on every device and under every sharding.
    """
    bits, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):  # one iota per axis, so that each device computes only its own part
        bits = bits + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    for word in words:
        bits = _mix(bits * jnp.uint32(0x9E3779B9) + word)
    return bits


def _mix(bits: Array) -> Array:
    """A bijection of uint32 in which every input bit affects every output bit (multiply and xor-shift)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
