"""Parameters, and initializers that trace and compile fast: the `init` of a large network takes a second."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.bits import random_bits

zeros_init = nn.initializers.zeros_init()
traced_once = partial(jax.jit, static_argnames=("shape", "dtype"))


def param(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """Return a module's parameter, which init(key, shape) makes if the module is initialized.

    `module.param` traces the initializer whenever a network is applied, to compare shapes; that took half of the time
    in which a forward pass is traced.

    Raises:
        flax.errors.ScopeParamShapeError: the parameter has another shape.
    """
    value: Any = module.get_variable("params", name)
    return value if getattr(value, "shape", None) == tuple(shape) else module.param(name, init, shape)


@traced_once
def unit_uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw independent numbers, uniform on (-1, 1).

    Args:
        key: a random key.
        shape: of the result, at most 2^32 numbers.
        dtype: of the result.

    Returns:
        the numbers, the same on every device and under every sharding.
    """
    # 23 bits and a half: the ends are excluded, and the distribution is symmetric.
    return ((random_bits(jax.random.key_data(key).ravel(), shape) >> 9).astype(dtype) + 0.5) * 2.0**-22 - 1.0


@traced_once
def kernel_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw a uniform kernel of variance 2 / (fan_in + fan_out), as diffusion U-Nets do.

    Glorot and Bengio 2010, eq. 16.

    Args:
        key: a random key.
        shape: [*size, in, out].
        dtype: of the result.

    Returns:
        the initial kernel.
    """
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return math.sqrt(6 / fans) * unit_uniform(key, shape, dtype)


@traced_once
def table_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw a uniform table of variance 1, for embeddings.

    Args:
        key: a random key.
        shape: [rows, features].
        dtype: of the result.

    Returns:
        the initial table.
    """
    return math.sqrt(3) * unit_uniform(key, shape, dtype)
