"""Shared parts of the text encoders: output, pure functions, embeddings, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.initializers import param, table_init


class Encoded(NamedTuple):
    """The output of a text encoder.

    Attributes:
        hidden: [B, L, D], a vector per token.
        pooled: [B, P], a vector per text; None: the encoder has none.
    """

    hidden: Array
    pooled: Array | None = None


def as_apply(module: nn.Module) -> Callable[..., Encoded]:
    """Turn a text encoder into a pure function.

    Args:
        module: a text encoder, called as module(ids, mask, **options).

    Returns:
        apply(params, ids, mask=None, **options) -> `Encoded`, with ids int[B, L] and mask bool[B, L], True for visible
        tokens; None: all are visible.
    """

    def apply(params, ids, mask=None, **options):
        return module.apply({"params": params}, ids, mask, **options)

    return apply


def init(module: nn.Module, key: Array) -> dict:
    """Draw a text encoder's parameters, a nested dict of float32 arrays."""

    def draw(key):
        # The encoder is only traced, on one token; compilation removes all but the parameters.
        return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    return jax.jit(draw)(key)


class EncoderLayer(nn.Module):
    """Fields of a layer in a stack of equal layers.

    Attributes:
        num_heads: of the attention; divides the width.
        mlp_dim: inner width of the feed-forward network.
        act: activation of the feed-forward network; see `activation`.
        eps: of the norms.
        dtype: type of the computation.
    """

    num_heads: int
    mlp_dim: int
    act: str
    eps: float
    dtype: jnp.dtype


class Embedding(nn.Module):
    """A table of vectors.

    An index outside 0..rows-1 gives NaN, since a compiled program can't raise.

    Attributes:
        rows: number of vectors.
        features: length of a vector.
        dtype: of the result.
        std: standard deviation of the initial values.
    """

    rows: int
    features: int
    dtype: jnp.dtype = jnp.float32
    std: float = 0.02

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """Map int[...] to [..., features]."""
        table = param(self, "embedding", scaled(table_init, self.std), (self.rows, self.features))
        # Negative indices would count from the end, so they are moved out of range. Only selected rows are converted.
        ids = jnp.where(ids < 0, self.rows, ids)
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)


def scaled(draw: Callable[..., Array], factor: float) -> Callable[..., Array]:
    """Scale an initializer by a factor."""
    return lambda *args: factor * draw(*args)


def quick_gelu(x: Array) -> Array:
    """Approximate GELU by a sigmoid (Hendrycks and Gimpel 2016, sec. 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


# Keys are the names in transformers' configs.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """Return an activation function by name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def check_tokens(ids: Array, mask: Array | None, longest: int | None = None) -> None:
    """Check token ids and their mask.

    Args:
        ids: int[B, L].
        mask: bool[B, L], True for visible tokens; None: all are visible.
        longest: the largest L; None: any.

    Raises:
        ValueError: ids is not int[B, L], L is too large, or mask is not bool[B, L].
    """
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids must be int[B, L], got {ids.dtype}{list(ids.shape)}")
    if longest is not None and ids.shape[1] > longest:
        raise ValueError(f"this encoder takes up to {longest} tokens, got {ids.shape[1]}")
    if mask is not None and (mask.shape != ids.shape or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool{list(ids.shape)} as ids is, got {mask.dtype}{list(mask.shape)}")
