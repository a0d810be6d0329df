"""Parameters from the tensors of files, copied to their devices one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from jaxdiff import quantize, trees
from jaxdiff.interop.formats.files import Tensor
from jaxdiff.interop.formats.keys import TensorSlot, places
from jaxdiff.interop.models.architecture import ModelSpec, ShardingFn
from jaxdiff.messages import listed, shared_prefix

__all__ = ["fill"]

DTYPES = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
GROUP = 2**28  # bytes of stacked layers on the host at a time, unless a single layer is larger


def fill(spec: ModelSpec, tensors: Mapping[str, Tensor], *, param_dtype: Any, place: ShardingFn | None) -> Any:
    """Fill a network's parameters from tensors; see `load`."""
    small = quantize.is_8_bit(param_dtype)
    shapes = jax.eval_shape(spec.init, jax.random.key(0))
    slots = places(shapes, spec.rename)
    named = {}
    for name, tensor in tensors.items():
        key = spec.alias(name)
        if key in named:
            raise ValueError(f"the file names {key!r} twice, the second time as {name!r}")
        if key is not None:
            named[key] = tensor
    _check(slots, named)
    sources: dict[tuple[str, ...], list[tuple[TensorSlot, Tensor]]] = {}
    for key, spot in slots.items():
        sources.setdefault(spot.path, []).append((spot, named[key]))
    where = jax.tree.map(lambda _: None, shapes) if place is None else place(shapes)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array | quantize.Quantized:
        parts = sources[trees.keys(path)]
        dtype = canonicalize_dtype(_widest(parts) if small or param_dtype is None else param_dtype)
        x = _read(parts, jax.ShapeDtypeStruct(shape.shape, dtype), sharding)
        return quantize.quantize_leaf(path, x, param_dtype) if small else x

    return jax.tree_util.tree_map_with_path(leaf, shapes, where, is_leaf=lambda x: x is None)


def _check(slots: Mapping[str, TensorSlot], named: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(slots.keys() - named.keys()), sorted(named.keys() - slots.keys())
    shared = sorted(slots.keys() & named.keys())
    shapes = [f"{k} is {named[k].shape}, not {slots[k].shape}" for k in shared if named[k].shape != slots[k].shape]
    types = [f"{k} is {named[k].dtype}" for k in shared if named[k].dtype not in DTYPES]
    faults = {
        "missing": missing,
        "not of this network": extra,
        "misshapen": shapes,
        "of a type that is not read": types,
    }
    if any(faults.values()):
        problems = [f"{what}: {listed(names)}" for what, names in faults.items() if names]
        prefix = shared_prefix(extra)
        if prefix and any(name.removeprefix(prefix) in slots for name in extra):
            problems.append(f"names in the file begin with {prefix!r}, which belongs to no network")
        raise ValueError(f"the tensors are not those that the config asks for: {'; '.join(problems)}")


def _widest(parts: list[tuple[TensorSlot, Tensor]]) -> Any:
    """Return a dtype for all layers of a stack, which may have different ones in the file."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*{DTYPES[tensor.dtype] for _, tensor in parts})


def _read(parts: list[tuple[TensorSlot, Tensor]], shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    """Read a leaf; parts on several devices are read once, and not kept on the host."""
    if sharding is None:
        return _on_device(parts, (slice(None),) * len(shape.shape), shape, None)
    indices = sharding.addressable_devices_indices_map(shape.shape)
    devices: dict[str, list[jax.Device]] = {}
    for device, index in indices.items():
        devices.setdefault(str(index), []).append(device)
    pieces = []
    for first, *others in devices.values():
        piece = _on_device(parts, indices[first], shape, first)
        pieces += [piece, *(jax.device_put(piece, other) for other in others)]
    return jax.make_array_from_single_device_arrays(shape.shape, sharding, pieces)


def _on_device(
    parts: list[tuple[TensorSlot, Tensor]],
    index: tuple[slice, ...],
    shape: jax.ShapeDtypeStruct,
    device: jax.Device | None,
) -> jax.Array:
    """Read a device's part of a leaf; stacked layers are read in groups of at most `GROUP` bytes."""

    def read(spot: TensorSlot, tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
        return tensor[tuple(index[axis] for axis in np.argsort(spot.axes))].transpose(spot.axes)

    if parts[0][0].layer is None:
        # Not ascontiguousarray, which turns a scalar into a vector.
        return _send(np.asarray(read(*parts[0], index), shape.dtype, order="C"), device)
    layers = parts[index[0]]
    size = [len(range(*s.indices(length))) for s, length in zip(index[1:], shape.shape[1:], strict=True)]
    count = max(1, GROUP // max(1, math.prod(size) * shape.dtype.itemsize))

    def group(start: int) -> np.ndarray:
        some = np.empty((min(count, len(layers) - start), *size), shape.dtype)
        for i in range(len(some)):
            some[i] = read(*layers[start + i], index[1:])
        return some

    if len(layers) <= count:
        return _send(group(0), device)
    stack = jnp.zeros((len(layers), *size), shape.dtype, device=device)
    for start in range(0, len(layers), count):
        stack = _put(stack, _send(group(start), device), np.int32(start))
    return stack


def _send(value: np.ndarray, device: jax.Device | None) -> jax.Array:
    # Blocks, so that the next tensor can reuse this one's memory on the host.
    return jax.block_until_ready(jax.device_put(value, device))


@partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, group: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(stack, group, start, 0)
