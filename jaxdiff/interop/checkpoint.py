"""Load and save the models of Hugging Face directories, without PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.architecture import Architecture
from jaxdiff.interop.classes import CLASSES
from jaxdiff.interop.files import Tensor, open_tensors, read_config
from jaxdiff.interop.keys import Place, flatten, places

__all__ = ["Loaded", "architecture", "fill", "load", "save"]

DTYPES = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
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
    file: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    place: Placing | None = None,
) -> Loaded:
    """Loads a model from a Hugging Face directory.

    Tensors go one by one from the file to their devices: the host holds one of them at a time.

    Args:
        path: the directory, with config.json and safetensors files.
        file: a file or index in it, where there are several variants; by default the one with the shortest name.
        dtype: of the computation.
        param_dtype: of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings, such as `lambda t: train.shard_params(t, mesh)`; None: the
            default device.

    Returns:
        The model.

    Raises:
        ValueError: the class is not known, a field of the config is not supported, or the tensors are not
            those that the config asks for; the message lists them.
    """
    path = Path(path)
    kind, config = read_config(path)
    built = architecture(config | {"_class_name": kind}, dtype)
    params = fill(built, open_tensors(path / file if file else path), param_dtype=param_dtype, place=place)
    return Loaded(built.apply, params, config | {"_class_name": kind})


def architecture(config: Mapping[str, Any], dtype: Any = jnp.float32) -> Architecture:
    """Builds what a config describes.

    Args:
        config: the fields, the class in `_class_name`.
        dtype: of the computation.

    Raises:
        ValueError: the class is not known, or a field is not supported.
    """
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise ValueError(f"unknown class {kind!r}; there are: {', '.join(sorted(CLASSES))}")
    return CLASSES[kind](config, dtype)


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
        target = DTYPES[parts[0][1].dtype] if param_dtype is None else param_dtype
        return _read(parts, shape.shape, target, sharding)

    return jax.tree_util.tree_map_with_path(leaf, shapes, where, is_leaf=lambda x: x is None)


def _check(wanted: Mapping[str, Place], named: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - named.keys()), sorted(named.keys() - wanted.keys())
    shared = sorted(wanted.keys() & named.keys())
    shapes = [f"{k} is {named[k].shape}, not {wanted[k].shape}" for k in shared if named[k].shape != wanted[k].shape]
    types = [f"{k} is {named[k].dtype}" for k in shared if named[k].dtype not in DTYPES]
    faults = {"missing": missing, "not of this network": extra, "misshapen": shapes, "not of a floating type": types}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise ValueError(f"the tensors are not those that the config asks for: {listed}")


def _read(parts: list[tuple[Place, Tensor]], shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    def one(spot: Place, tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
        theirs = tuple(index[axis] for axis in np.argsort(spot.axes))
        # Not ascontiguousarray, which makes a vector of a scalar.
        return np.asarray(tensor[theirs].transpose(spot.axes), order="C").astype(dtype, copy=False)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if parts[0][0].layer is None:
            return one(*parts[0], index)
        return np.stack([one(spot, tensor, index[1:]) for spot, tensor in parts[index[0]]])

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)


def save(loaded: Loaded, directory: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Saves a model as a Hugging Face directory, which diffusers or transformers load in PyTorch.

    Args:
        loaded: the model; every device's part of its parameters must be of this process.
        directory: is made where it does not exist; must hold no weights.
        shard_bytes: the largest size of a file; more than one get an index.

    Raises:
        ValueError: the directory holds weights, or the parameters are not those of the config.
    """
    from safetensors.numpy import save_file

    directory = Path(directory)
    built = architecture(loaded.config)
    _check_shapes(jax.eval_shape(built.init, jax.random.key(0)), loaded.params)
    if directory.is_dir() and any(directory.glob("*.safetensors*")):
        raise ValueError(f"{directory} holds weights already")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(loaded.config), indent=2, sort_keys=True) + "\n")

    files = _split(loaded.params, built, shard_bytes)
    index = {}
    for number, keys in enumerate(files, 1):
        name = f"{built.weights}.safetensors"
        if len(files) > 1:
            name = f"{built.weights}-{number:05}-of-{len(files):05}.safetensors"
        held = dict(flatten(loaded.params, built.rename, keys))
        save_file(held, directory / name, {"format": "pt"})
        index |= dict.fromkeys(held, name)
    if len(files) > 1:
        total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(loaded.params))
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2, sort_keys=True)
        (directory / f"{built.weights}.safetensors.index.json").write_text(text + "\n")


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
        listed = ", ".join(f"{k} is {flat[1].get(k)}, not {flat[0].get(k)}" for k in odd[:20])
        raise ValueError(f"the parameters are not those that the config asks for: {listed}")
