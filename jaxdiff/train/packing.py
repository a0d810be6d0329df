"""Small arrays of a tree as one: a device would otherwise launch a kernel for each bias, in each pass over the tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdiff import sharding
from jaxdiff.train.layouts import inner_axes
from jaxdiff.types import Params


def pack(tree: Any) -> dict[str, Any]:
    """Concatenate the small arrays of a tree; these are replicated on every mesh.

    Args:
        tree: tree of arrays.

    Returns:
        {"large": the tree with None for each small array, "small": {dtype: all small arrays of that dtype, [N]}}.
    """
    small: dict[str, list[Array]] = {}
    for x in jax.tree.leaves(tree):
        if _is_small(x):
            small.setdefault(str(x.dtype), []).append(x.ravel())
    return {
        "large": jax.tree.map(lambda x: None if _is_small(x) else x, tree),
        # Without the barrier, XLA makes a sum of each array again.
        "small": {dtype: jax.lax.optimization_barrier(jnp.concatenate(arrays)) for dtype, arrays in small.items()},
    }


def unpack(parts: dict[str, Any], like: Any) -> Any:
    """Invert `pack`.

    Args:
        parts: from `pack`, of a tree such as `like`.
        like: tree of arrays of the same shapes and dtypes.
    """
    large = iter(jax.tree.leaves(parts["large"]))
    # Of slices that begin where the compiler does not know, one kernel takes many; of others, each is a kernel.
    start = dict.fromkeys(parts["small"], jax.lax.optimization_barrier(jnp.zeros((), jnp.int32)))

    def take(x: Any) -> Array:
        if not _is_small(x):
            return next(large)
        dtype = str(x.dtype)
        part = jax.lax.dynamic_slice_in_dim(parts["small"][dtype], start[dtype], x.size)
        start[dtype] += x.size
        return part.reshape(x.shape)

    return jax.tree.map(take, like)


class Bounded(optax.GradientTransformation):
    """An optimizer whose updates of float32 parameters, at least, are bounded where the gradient's norm is finite.

    A step need not look at each, see `is_bounded`.
    """


def is_bounded(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Return whether an optimizer is `Bounded` for parameters: half precision has not the range for its squares."""
    return isinstance(optimizer, Bounded) and all(jnp.finfo(x.dtype).bits >= 32 for x in jax.tree.leaves(params))


def packed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply an optimizer to the small arrays as one; it must treat each number alike, whatever array it is in.

    The gradients are cast to the dtypes of the parameters.
    """

    def update(grads: Any, state: Any, params: Params) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, params)
        updates, state = optimizer.update(pack(grads), state, pack(params))
        return unpack(updates, grads), state

    return optax.GradientTransformation(lambda params: optimizer.init(pack(params)), update)


def norm(tree: Any) -> Array:
    """Return the global norm of a tree of arrays."""
    squares = [(path, jnp.square(x)) for path, x in jax.tree.leaves_with_path(pack(tree))]
    if not squares:
        return jnp.zeros(())
    if sharding.splits_params():
        return jnp.sqrt(sum(jnp.sum(x) for _, x in squares))
    # A sum to one number would take two kernels for each array.
    sums = jnp.concatenate([jnp.sum(x, inner_axes(path, x.shape)).ravel() for path, x in squares])
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(sums)))


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Scale gradients whose global norm is greater than `largest` to that norm."""

    def update(grads: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        scale = largest / jnp.maximum(norm(grads), largest)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_small(x: Any) -> bool:
    return x.size < sharding.MIN_SHARDED_SIZE
