"""Weights of 8 bits for sampling: half the memory of bfloat16, at an error to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Quantized", "Weights", "check_unquantized", "is_8_bit", "kept_in_loops", "quantize", "quantize_leaf"]

Weights = Literal["int8", "float8"]
DTYPES = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
# Smaller arrays take no memory worth the error; those of the first and the last layer are often among them.
MIN_SIZE, MIN_ROWS = 4096, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A layer's weight in 8 bits, which the layer multiplies by its scale where it casts it.

    Attributes:
        values: int8 or float8_e4m3fn, [..., D, F].
        scale: of each column, [..., 1, F], float32 at least.
    """

    values: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """That of the weight."""
        return self.values.ndim

    def astype(self, dtype: Any) -> Array:
        """Return the weight, multiplied in the scale's precision."""
        return (self.values.astype(self.scale.dtype) * self.scale).astype(dtype)

    def __jax_array__(self) -> Array:
        """The weight, for layers of others, which cast it by `jnp.asarray`."""
        return self.astype(self.scale.dtype)


def quantize(params: Any, weights: Weights = "int8") -> Any:
    """Store the kernels of linear layers and convolutions in 8 bits, symmetric about 0, with a scale for each column.

    With "int8" a number of the kernel is off by at most the largest of its column / 254, with "float8" (e4m3,
    Micikevicius et al. 2022, arXiv:2209.05433) by at most 1/16 of itself, where it is not tiny. Networks of
    `jaxdiff.networks` take the result like the parameters; it is for sampling, not for training.

    Args:
        params: tree of arrays, with layers' kernels by the name "kernel": [..., D, F].
        weights: "int8" or "float8".

    Returns:
        the tree, where kernels of 4,096 elements or more are `Quantized`.

    Raises:
        ValueError: `weights` is neither.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: quantize_leaf(path, x, weights), params)


def quantize_leaf(path: tuple[Any, ...], x: Array, weights: Weights) -> Array | Quantized:
    """Return one array of a tree as `quantize` returns it.

    Args:
        path: its keys.
        x: the array.
        weights: "int8" or "float8".

    Raises:
        ValueError: `weights` is neither.
    """
    if weights not in DTYPES:
        raise ValueError(f"weights must be one of {', '.join(DTYPES)}, got {weights!r}")
    named = bool(path) and getattr(path[-1], "key", None) == "kernel"
    small = x.size < MIN_SIZE or x.ndim < 2 or x.shape[-2] < MIN_ROWS  # or the scales are as large as what is saved
    if not named or small or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return _rounded(x, DTYPES[weights])


def is_8_bit(dtype: Any) -> bool:
    """Whether a dtype of parameters is "int8" or "float8".

    Raises:
        ValueError: it is neither, nor a floating dtype, nor None.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return True
    try:
        known = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"param_dtype must be a floating dtype, or one of {', '.join(DTYPES)} by name, got {dtype!r}")
    return False


def check_unquantized(params: Any, use: str) -> None:
    """Raise ValueError if weights are `Quantized`.

    Args:
        params: tree of arrays.
        use: what comes before, e.g. "a model is saved".
    """
    if any(isinstance(leaf, Quantized) for leaf in jax.tree.leaves(params, is_leaf=_is_quantized)):
        raise ValueError(f"{use} before weights are stored in 8 bits, which are for sampling alone")


def kept_in_loops(params: Any, x: Array) -> tuple[Any, Array]:
    """Tie `Quantized` weights to x, so that a compiler leaves their casts in a loop in which x changes.

    It would cast all of them before the loop, and keep both.

    Args:
        params: tree of arrays.
        x: what the loop changes.

    Returns:
        both, with the same values.
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=_is_quantized)
    small = [leaf for leaf in leaves if _is_quantized(leaf)]
    if not small:
        return params, x
    small, x = jax.lax.optimization_barrier((small, x))
    kept = iter(small)
    return jax.tree.unflatten(tree, [next(kept) if _is_quantized(leaf) else leaf for leaf in leaves]), x


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


@partial(jax.jit, static_argnums=1)
def _rounded(w: Array, dtype: Any) -> Quantized:
    integer = jnp.issubdtype(dtype, jnp.integer)
    w = w.astype(jnp.float64 if w.dtype == jnp.float64 else jnp.float32)
    largest = jnp.max(jnp.abs(w), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
    scaled = w / scale
    return Quantized((jnp.round(scaled) if integer else scaled).astype(dtype), scale)
