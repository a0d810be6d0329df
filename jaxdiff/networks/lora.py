"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), as functions of a network's parameters.

Adapters are a tree like the parameters, with only the adapted kernels, each replaced by a pair

    {"down": [*size, in, rank], "up": [rank, out]}

for a dense kernel [in, out] and a convolution's [*size, in, out] alike. Stacked layers (a path with a segment that ends
in `.*`) have an additional leading axis in both. The paper's A is `down`, its B is `up`. Instead of a pair,
{"delta": [*size, in, out]} is a change of any rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import trees
from jaxdiff.messages import listed
from jaxdiff.quantize import check_unquantized

__all__ = ["ATTENTION", "adapted", "init", "merge", "unmerge"]

# Names of attention's projections in diffusers and transformers.
ATTENTION = r"(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|[qkv]_proj|out_proj|SelfAttention\.[qkvo])$"

Params = Any
Adapters = Any


def init(
    key: Array,
    params: Params,
    rank: int,
    *,
    targets: str | Callable[[str], bool] = ATTENTION,
    dtype: Any = jnp.float32,
) -> Adapters:
    """Draw adapters whose initial change is zero: `down` is Gaussian, `up` is zero (Hu et al. 2021, sec. 4.1).

    Args:
        key: a random key.
        params: a nested dict of arrays or of their shapes.
        rank: r, at least 1.
        targets: the kernels to adapt: a regular expression, searched for in the dotted path of a kernel's module,
            e.g. "down_blocks.1.attentions.0.to_q", or a predicate on this path.
        dtype: dtype of the adapters.

    Returns:
        the adapters.

    Raises:
        ValueError: the rank is below 1, or the targets are no regular expression or match no kernel.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    try:
        meant = re.compile(targets).search if isinstance(targets, str) else targets
    except re.error as error:
        raise ValueError(f"targets={targets!r} is no regular expression: {error}") from error
    check_unquantized(params, "adapters are drawn")
    shapes = {path: leaf.shape for path, leaf in trees.leaves(params).items() if path[-1] == "kernel"}
    chosen = {path: shape for path, shape in shapes.items() if meant(".".join(path[:-1]))}
    if not chosen:
        raise ValueError(f"none of the {len(shapes)} kernels is meant by targets={targets!r}")
    adapters: dict[str, Any] = {}
    for leaf_key, (path, shape) in zip(jax.random.split(key, len(chosen)), chosen.items(), strict=True):
        stack = shape[: trees.stack_axes(path)]
        fan_in = math.prod(shape[len(stack) : -1])
        down = jax.random.normal(leaf_key, (*shape[:-1], rank), dtype) * fan_in**-0.5
        pair = {"down": down, "up": jnp.zeros((*stack, rank, shape[-1]), dtype)}
        trees.put(adapters, path, pair)
    return adapters


def merge(params: Params, adapters: Adapters, scale: float | Array = 1.0) -> Params:
    """Add adapters to their kernels: W + scale down up, or W + scale delta (Hu et al. 2021, eq. 3).

    Args:
        params: the network's parameters, which are not changed; keep them to unload adapters exactly.
        adapters: from `init` or a file.
        scale: the paper's alpha / r; it may be traced.

    Returns:
        a tree like params, in its dtypes; sums are computed in the adapters' dtype at least.

    Raises:
        ValueError: an adapter has no kernel in params, or another shape.
    """
    return jax.tree.map(lambda new, old: new.astype(old.dtype), _add(params, adapters, scale), params)


def unmerge(params: Params, adapters: Adapters, scale: float | Array = 1.0) -> Params:
    """Subtract merged adapters, up to rounding: W - scale down up; see `merge`."""
    return merge(params, adapters, -scale)


def adapted(apply: Callable[..., Any], scale: float | Array = 1.0) -> Callable[..., Any]:
    """Return a network as a function of its adapters and its own parameters.

    Both are arguments: parameters in a closure would be constants of the program, copied to every device, and would
    cost seconds of compilation per gigabyte.

    Args:
        apply: (params, ...) -> output.
        scale: as for `merge`.

    Returns:
        ((adapters, params), ...) -> output, with gradients for the adapters only.
    """

    @wraps(apply)
    def call(trained: tuple[Adapters, Params], *args: Any, **kwargs: Any) -> Any:
        adapters, params = trained
        return apply(_add(jax.lax.stop_gradient(params), adapters, scale), *args, **kwargs)

    return call


def pairs(adapters: Adapters, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Array]]]:
    """Yield the adapters: (path of the kernel, {"down", "up"} or {"delta"})."""
    if set(adapters) in ({"down", "up"}, {"delta"}) and not any(isinstance(a, Mapping) for a in adapters.values()):
        yield path, adapters
        return
    for name, below in adapters.items():
        if not isinstance(below, Mapping):
            raise ValueError(f"{'/'.join((*path, name))} is no pair of arrays 'down' and 'up', nor a 'delta'")
        yield from pairs(below, (*path, name))


def _add(params: Params, adapters: Adapters, scale: float | Array) -> Params:
    rest = dict(pairs(adapters))

    def add(entries: Any, leaf: Array) -> Array:
        path = trees.keys(entries)
        pair = rest.pop(path, None)
        if pair is None:
            return leaf
        more = pair["delta"] if "delta" in pair else _product(**pair)
        if more.shape != leaf.shape:
            raise ValueError(f"the adapter of {'/'.join(path)} is {more.shape}, not {leaf.shape}")
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(leaf.dtype, more.dtype)
        return leaf.astype(wide) + jnp.asarray(scale, wide) * more.astype(wide)

    merged = jax.tree_util.tree_map_with_path(add, params)
    if rest:
        check_unquantized(params, "adapters are merged")
        raise ValueError(f"adapters of kernels that are not there: {listed('/'.join(path) for path in rest)}")
    return merged


def _product(down: Array, up: Array) -> Array:
    # Axes of size 1 stand for a convolution's, so that the axes of stacked layers align.
    up = up.reshape(*up.shape[:-2], *(1,) * (down.ndim - up.ndim), *up.shape[-2:])
    return jnp.matmul(down, up, precision="highest")
