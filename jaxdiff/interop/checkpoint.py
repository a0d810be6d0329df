"""Load and save the models of Hugging Face directories, without PyTorch."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import trees
from jaxdiff.interop.formats.fields import check_layers
from jaxdiff.interop.formats.files import open_tensors, write_tensors
from jaxdiff.interop.formats.keys import flatten, places
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained, ShardingFn
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.fill import fill
from jaxdiff.interop.sources import read_model
from jaxdiff.messages import listed
from jaxdiff.quantize import check_unquantized
from jaxdiff.storage import replacing
from jaxdiff.types import Params

__all__ = ["load", "save"]


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    place: ShardingFn | None = None,
) -> Pretrained:
    """Load a model from a Hugging Face directory, or from a checkpoint of Stable Diffusion or Flux in one file.

    Tensors are copied from the file to their devices one by one, so that the host stores only one, or a few small ones.

    Args:
        path: a directory with config.json and safetensors files: the file with the class's own name, or that name with
            a variant, or the only file. Or a file or index in a directory; a single file of one model with the names
            of its authors; or a part of a single file, e.g. "sdxl.safetensors/vae".
        variant: variant of the weights in a directory, e.g. "fp16".
        config: fields that do not follow from the tensors of a single file, e.g. scaling_factor, or that replace
            fields of the file.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters; None: as in the file. "int8" or "float8": kernels in 8 bits, for sampling,
            see `quantize.quantize`.
        place: tree of shapes -> tree of shardings, e.g. `lambda t: train.shard_params(t, mesh)`; None: the default
            device.

    Returns:
        the model.

    Raises:
        ValueError: the class is unknown, a field of the config is not supported, several files or parts match, or the
            tensors are not those of the config; the message lists them.
    """
    fields, tensors = read_model(path, config)
    spec = architecture(fields, dtype)
    if tensors is None:
        tensors = open_tensors(path, spec.weights, variant)
    elif variant is not None:
        raise ValueError(f"a variant is of a directory's weights, and {path} names a file")
    check_layers(fields, len(tensors))
    return Pretrained(spec.apply, fill(spec, tensors, param_dtype=param_dtype, place=place), fields)


def save(loaded: Pretrained, directory: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Save a model as a Hugging Face directory, which diffusers or transformers load in PyTorch.

    The dtype in the config, to which transformers casts the parameters, is set to that of these parameters.

    Args:
        loaded: the model; all shards of its parameters must be on devices of this process.
        directory: where to save; created if missing. It must not contain weights.
        shard_bytes: maximal size of a file; several files get an index.

    Raises:
        ValueError: the directory contains weights, or the parameters are not those of the config.
    """
    directory = Path(directory)
    spec = architecture(loaded.config)
    check_unquantized(loaded.params, "a model is saved")
    _check_shapes(jax.eval_shape(spec.init, jax.random.key(0)), loaded.params)
    if any(directory.glob("[!.]*.safetensors*")):
        raise ValueError(f"{directory} holds weights already")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jax.tree.leaves(loaded.params)).name
    config = {k: dtype if k in ("dtype", "torch_dtype") and v else v for k, v in loaded.config.items()}
    files = _split(loaded.params, spec, shard_bytes)
    index: dict[str, str] = {}
    # All files are written before any is renamed. Renaming goes in the reverse order: first the config, which has no
    # weights next to it yet that could contradict it, and last the file by which the weights are found.
    with contextlib.ExitStack() as stack:
        if len(files) > 1:
            listing = stack.enter_context(replacing(directory / f"{spec.weights}.safetensors.index.json"))
        for number, keys in enumerate(files, 1):
            name = f"{spec.weights}.safetensors"
            if len(files) > 1:
                name = f"{spec.weights}-{number:05}-of-{len(files):05}.safetensors"
            tensors = dict(flatten(loaded.params, spec.rename, keys))
            write_tensors(tensors, stack.enter_context(replacing(directory / name)))
            index |= dict.fromkeys(tensors, name)
        if len(files) > 1:
            total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(loaded.params))
            listing.write_text(_json({"metadata": {"total_size": total}, "weight_map": index}))
        fields = stack.enter_context(replacing(directory / "config.json"))
        fields.write_text(_json(config))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _split(params: Params, spec: ModelSpec, max_bytes: int) -> list[list[str]]:
    """Distribute the keys over files of at most `max_bytes` bytes, or of one tensor."""
    files: list[list[str]] = []
    size = 0
    for key, spot in places(params, spec.rename).items():
        more = math.prod(spot.shape) * trees.get(params, spot.path).dtype.itemsize
        if not files or size + more > max_bytes:
            files.append([])
            size = 0
        files[-1].append(key)
        size += more
    return files


def _check_shapes(expected: Any, got: Any) -> None:
    flat = [{name: a.shape for name, a in trees.flatten(tree).items()} for tree in (expected, got)]
    names = sorted(k for k in flat[0].keys() | flat[1].keys() if flat[0].get(k) != flat[1].get(k))
    if names:
        differences = listed(f"{k} is {flat[1].get(k)}, not {flat[0].get(k)}" for k in names)
        raise ValueError(f"the parameters are not those that the config asks for: {differences}")
