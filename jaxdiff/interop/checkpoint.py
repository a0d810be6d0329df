"""Load and save the models of Hugging Face directories, without PyTorch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from jaxdiff.interop.architecture import Architecture
from jaxdiff.interop.classes import CLASSES
from jaxdiff.interop.fields import check_layers
from jaxdiff.interop.files import Tensor, open_tensors
from jaxdiff.interop.keys import Place, flatten, places
from jaxdiff.interop.sources import read_model
from jaxdiff.messages import listed, shared_prefix
from jaxdiff.schema import look_up
from jaxdiff.storage import replacing

__all__ = ["Loaded", "architecture", "fill", "load", "save"]

DTYPES = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
GROUP = 2**28  # bytes of stacked layers that the host holds at a time, where a layer is not larger
Placing = Callable[[Any], Any]  # tree of shapes -> tree of shardings


class Loaded(NamedTuple):
    """A model of another project.

    Attributes:
        apply: the network as a pure function of (params, ...), or a NamedTuple of such functions.
        params: a nested dict of arrays.
        config: the fields of its config.json, with the class's name as `_class_name`.
    """

    apply: Any
    params: Any
    config: Mapping[str, Any]


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    place: Placing | None = None,
) -> Loaded:
    """Loads a model from a Hugging Face directory, or from a checkpoint of Stable Diffusion or Flux in one file.

    Tensors go one by one from the file to their devices: the host holds one at a time, or some small ones.

    Args:
        path: the directory, with config.json and safetensors files; of several the one that has the class's own name
            is read, then that name with a variant, then the only one. Or a file or index in it; a single file of one
            model in its authors' names; a part of a single file, such as "sdxl.safetensors/vae".
        variant: of the weights in a directory, such as "fp16".
        config: fields that a single file's tensors don't tell, such as an autoencoder's scaling_factor, or that replace
            those that were read.
        dtype: of the computation.
        param_dtype: of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings, such as `lambda t: train.shard_params(t, mesh)`; None: the
            default device.

    Returns:
        The model.

    Raises:
        ValueError: the class is not known, a field of the config is not supported, it is not said which of several
            files or parts is meant, or the tensors are not those that the config asks for; the message lists them.
    """
    fields, tensors = read_model(path, config)
    built = architecture(fields, dtype)
    if tensors is None:
        tensors = open_tensors(path, built.weights, variant)
    elif variant is not None:
        raise ValueError(f"a variant is of a directory's weights, and {path} names a file")
    check_layers(fields, len(tensors))
    return Loaded(built.apply, fill(built, tensors, param_dtype=param_dtype, place=place), fields)


def architecture(config: Mapping[str, Any], dtype: Any = jnp.float32) -> Architecture:
    """Builds what a config describes.

    Args:
        config: the fields, the class in `_class_name`.
        dtype: of the computation.

    Raises:
        ValueError: the class is not known, or a field is not supported.
    """
    return look_up(CLASSES, config.get("_class_name"), "class")(config, dtype)


def fill(built: Architecture, tensors: Mapping[str, Tensor], *, param_dtype: Any, place: Placing | None) -> Any:
    """Fills a network's parameters from tensors; see `load`."""
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    wanted = places(shapes, built.rename)
    named = {}
    for name, tensor in tensors.items():
        key = built.alias(name)
        if key in named:
            raise ValueError(f"the file names {key!r} twice, the second time as {name!r}")
        if key is not None:
            named[key] = tensor
    _check(wanted, named)
    sources: dict[tuple[str, ...], list[tuple[Place, Tensor]]] = {}
    for key, spot in wanted.items():
        sources.setdefault(spot.path, []).append((spot, named[key]))
    where = jax.tree.map(lambda _: None, shapes) if place is None else place(shapes)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        parts = sources[tuple(entry.key for entry in path)]
        dtype = canonicalize_dtype(_widest(parts) if param_dtype is None else param_dtype)
        return _read(parts, jax.ShapeDtypeStruct(shape.shape, dtype), sharding)

    return jax.tree_util.tree_map_with_path(leaf, shapes, where, is_leaf=lambda x: x is None)


def _check(wanted: Mapping[str, Place], named: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - named.keys()), sorted(named.keys() - wanted.keys())
    shared = sorted(wanted.keys() & named.keys())
    shapes = [f"{k} is {named[k].shape}, not {wanted[k].shape}" for k in shared if named[k].shape != wanted[k].shape]
    types = [f"{k} is {named[k].dtype}" for k in shared if named[k].dtype not in DTYPES]
    faults = {
        "missing": missing,
        "not of this network": extra,
        "misshapen": shapes,
        "of a type that is not read": types,
    }
    if any(faults.values()):
        told = [f"{what}: {listed(names)}" for what, names in faults.items() if names]
        prefix = shared_prefix(extra)
        if prefix and any(name.removeprefix(prefix) in wanted for name in extra):
            told.append(f"names in the file begin with {prefix!r}, which belongs to no network")
        raise ValueError(f"the tensors are not those that the config asks for: {'; '.join(told)}")


def _widest(parts: list[tuple[Place, Tensor]]) -> Any:
    """The type that holds all layers of a stack, to which a file may give different ones."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*{DTYPES[tensor.dtype] for _, tensor in parts})


def _read(parts: list[tuple[Place, Tensor]], shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    """Reads a leaf; what several devices hold is read once, and the host keeps none of it."""
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
    parts: list[tuple[Place, Tensor]],
    index: tuple[slice, ...],
    shape: jax.ShapeDtypeStruct,
    device: jax.Device | None,
) -> jax.Array:
    """Reads the part of a leaf that a device holds; a stack of layers by groups of at most `GROUP` bytes."""

    def one(spot: Place, tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
        return tensor[tuple(index[axis] for axis in np.argsort(spot.axes))].transpose(spot.axes)

    if parts[0][0].layer is None:
        # Not ascontiguousarray, which makes a vector of a scalar.
        return _send(np.asarray(one(*parts[0], index), shape.dtype, order="C"), device)
    layers = parts[index[0]]
    size = [len(range(*s.indices(length))) for s, length in zip(index[1:], shape.shape[1:], strict=True)]
    count = max(1, GROUP // max(1, math.prod(size) * shape.dtype.itemsize))

    def group(start: int) -> np.ndarray:
        some = np.empty((min(count, len(layers) - start), *size), shape.dtype)
        for i in range(len(some)):
            some[i] = one(*layers[start + i], index[1:])
        return some

    if len(layers) <= count:
        return _send(group(0), device)
    stack = jnp.zeros((len(layers), *size), shape.dtype, device=device)
    for start in range(0, len(layers), count):
        stack = _put(stack, _send(group(start), device), np.int32(start))
    return stack


def _send(value: np.ndarray, device: jax.Device | None) -> jax.Array:
    # Waits: the next tensor's memory on the host is then this one's.
    return jax.block_until_ready(jax.device_put(value, device))


@partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, group: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(stack, group, start, 0)


def save(loaded: Loaded, directory: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Saves a model as a Hugging Face directory, which diffusers or transformers load in PyTorch.

    A config that tells the parameters' type, which transformers casts to, tells that of these parameters.

    Args:
        loaded: the model; every device's part of its parameters must be of this process.
        directory: is made where it does not exist; must hold no weights.
        shard_bytes: the largest size of a file; more than one get an index.

    Raises:
        ValueError: the directory holds weights, or the parameters are not those of the config.
    """
    directory = Path(directory)
    built = architecture(loaded.config)
    _check_shapes(jax.eval_shape(built.init, jax.random.key(0)), loaded.params)
    if any(directory.glob("[!.]*.safetensors*")):
        raise ValueError(f"{directory} holds weights already")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jax.tree.leaves(loaded.params)).name
    config = {k: dtype if k in ("dtype", "torch_dtype") and v else v for k, v in loaded.config.items()}
    files = _split(loaded.params, built, shard_bytes)
    index: dict[str, str] = {}
    # Everything is written before anything has its name. The names come in the reverse order: the config, which no
    # weights beside it contradict, since there are none, and last those by which the weights are found.
    with contextlib.ExitStack() as stack:
        if len(files) > 1:
            listing = stack.enter_context(replacing(directory / f"{built.weights}.safetensors.index.json"))
        for number, keys in enumerate(files, 1):
            name = f"{built.weights}.safetensors"
            if len(files) > 1:
                name = f"{built.weights}-{number:05}-of-{len(files):05}.safetensors"
            held = dict(flatten(loaded.params, built.rename, keys))
            write_tensors(held, stack.enter_context(replacing(directory / name)))
            index |= dict.fromkeys(held, name)
        if len(files) > 1:
            total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(loaded.params))
            listing.write_text(_json({"metadata": {"total_size": total}, "weight_map": index}))
        beside = stack.enter_context(replacing(directory / "config.json"))
        beside.write_text(_json(config))


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file, as PyTorch programs expect it.

    Args:
        tensors: by name.
        path: the file.

    Raises:
        OSError: the disk is full, say.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, {"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # all that it keeps of an error of the system
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _split(params: Any, built: Architecture, limit: int) -> list[list[str]]:
    """The keys in files of at most `limit` bytes, or of one tensor."""
    files: list[list[str]] = []
    size = 0
    for key, spot in places(params, built.rename).items():
        leaf = params
        for segment in spot.path:
            leaf = leaf[segment]
        more = math.prod(spot.shape) * leaf.dtype.itemsize
        if not files or size + more > limit:
            files.append([])
            size = 0
        files[-1].append(key)
        size += more
    return files


def _check_shapes(wanted: Any, got: Any) -> None:
    flat = [
        {jax.tree_util.keystr(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(t)} for t in (wanted, got)
    ]
    odd = sorted(k for k in flat[0].keys() | flat[1].keys() if flat[0].get(k) != flat[1].get(k))
    if odd:
        told = listed(f"{k} is {flat[1].get(k)}, not {flat[0].get(k)}" for k in odd)
        raise ValueError(f"the parameters are not those that the config asks for: {told}")
