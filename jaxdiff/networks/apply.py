"""Between Linen modules and the pure functions of the rest of the project."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.dtypes import canonicalize_dtype


def as_apply(module: nn.Module) -> Callable[..., Any]:
    """Turns a network into the pure function that denoisers and losses take.

    Args:
        module: a network called as module(x, noise, cond, train=...).

    Returns:
        apply(params, x, noise, cond=None, *, key=None): the network's output. A key switches training mode
        (dropout) on.
    """

    def apply(params, x, noise, cond=None, *, key=None):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, noise, cond, train=key is not None, rngs=rngs)

    return apply


def init(module: nn.Module, key: Array, x: Any, cond: Mapping[str, Any] | None = None) -> dict:
    """Draws a network's parameters.

    Args:
        module: a network called as module(x, noise, cond, train=...).
        key: a random key.
        x: [B, *spatial, C], or anything with its shape and dtype; B may be 1.
        cond: the condition that the network is configured for, likewise.

    Returns:
        A plain nested dict of float32 arrays.
    """

    def draw(key):
        # The network runs on zeros in the trace only: compilation drops everything but the parameters.
        zeros = {name: jnp.zeros(a.shape, canonicalize_dtype(a.dtype)) for name, a in (cond or {}).items()}
        noise = jnp.zeros(x.shape[:1], jnp.float32)
        return module.init(key, jnp.zeros(x.shape, jnp.float32), noise, zeros)["params"]

    return jax.jit(draw)(key)


def check_cond(got: Mapping[str, Array], allowed: Mapping[str, tuple[int | None, ...]]) -> None:
    """Refuses conditions that a network is not configured for.

    Args:
        got: the arrays by name.
        allowed: the shape that each must have; None stands for any length.

    Raises:
        ValueError: if one is missing, unknown or has another shape.
    """
    for name in got.keys() - allowed.keys():
        known = ", ".join(sorted(allowed.keys() - {"noise"})) or "none"
        raise ValueError(f"unknown condition {name!r}; this network is configured for: {known}")
    for name in allowed.keys() - got.keys():
        raise ValueError(f"the network is configured for the condition {name!r}, which is missing")
    for name, shape in allowed.items():
        found = got[name].shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            raise ValueError(f"{name} must have shape {shape}, got {found}")
