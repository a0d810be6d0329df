"""Files of adapters from diffusers and PEFT, old and new, from kohya's scripts and from LyCORIS.

The name of an adapted module has one of four forms:

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight      by its key
    unet.down_blocks.0.[...].attn1.processor.to_q_lora.down.weight                     by diffusers' older key
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight                            by its authors' name
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import trees
from jaxdiff.interop.adapters.kinds import Change, Group, ending, rank_of, read_change, unread
from jaxdiff.interop.adapters.names import Target, find, kernels, network
from jaxdiff.interop.formats.files import find_weights, open_metadata, open_tensors, write_tensors
from jaxdiff.interop.models.architecture import Pretrained
from jaxdiff.interop.models.classes import CLASSES, architecture
from jaxdiff.messages import listed
from jaxdiff.networks.lora import pairs
from jaxdiff.schema import FLAG, mapping, number, whole_number
from jaxdiff.storage import parse_json, read_json, replacing
from jaxdiff.types import Params

__all__ = ["load_lora", "save_lora"]

FILE = "pytorch_lora_weights.safetensors"  # diffusers' default name
ALPHA = number(-1e9, 1e9)
METADATA = "lora_adapter_metadata"
# PEFT's settings that determine the scale; others are not used.
SETTINGS = {
    "r": whole_number(1, 2**20), "lora_alpha": ALPHA, "alpha": ALPHA, "use_rslora": FLAG,
    "rank_pattern": mapping(whole_number(1, 2**20), 100_000), "alpha_pattern": mapping(ALPHA, 100_000),
}  # fmt: skip
Layers = dict[int | None, Change]  # by layer of a stacked kernel, else by None


def load_lora(path: str | Path, models: Mapping[str, Pretrained], *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Read a file of adapters, for `networks.lora.merge` and `adapted` with a scale of 1.

    For LoRA, also with a convolution's third factor (`lora_mid`), the result is a pair of `down` and `up`, with the
    file's alpha / rank multiplied into `up`. LoHa, LoKr and DoRA are not of low rank: the result is the change of the
    kernel, `delta`. If adapters of stacked layers have different ranks, or some layers have none, they are padded with
    zeros.

    Args:
        path: a .safetensors file, or a directory with one.
        models: the networks by their names in the file: "unet", "transformer", "text_encoder", "text_encoder_2". A
            file without such names needs a single network. Only the shapes of the parameters are used, and for DoRA
            their values.
        dtype: dtype of the adapters.

    Returns:
        the adapters by the same names, for the networks that the file adapts.

    Raises:
        ValueError: tensors belong to no kernel of these networks or to an unsupported kind of adapter, are missing, or
            do not fit the kernels; the message lists them.
    """
    file = _file(Path(path))
    # An IP-Adapter among a pipeline's models is no network of its own.
    networks = {name: network(loaded) for name, loaded in models.items() if loaded.config["_class_name"] in CLASSES}
    groups: dict[str, dict[str, Any]] = {}
    where: dict[str, tuple[str, tuple[Target, ...]]] = {}
    unknown = []
    for name, tensor in open_tensors(file).items():
        module, role = ending(name)
        model, targets = where.setdefault(module, find(module, networks)) if role else ("", ())
        if role is None or not targets or role in groups.get(module, {}):
            unknown.append(name)
        else:
            groups.setdefault(module, {})[role] = name, tensor
    if unknown:
        kinds = unread(unknown)
        raise ValueError(
            f"{file}: {len(unknown)} tensors belong to no kernel of the networks: {listed(unknown)}"
            + (f"; {' and '.join(kinds)} are not read" if kinds else "")
        )

    settings = _settings(file)
    layers: dict[str, dict[tuple[str, ...], Layers]] = {}
    for module, group in groups.items():
        model, targets = where[module]
        total = sum(target.place.shape[0] for target in targets), *targets[0].place.shape[1:]
        scale = _scale(group, settings, f"{model}.{targets[0].module}")
        change = read_change(group, total, scale, partial(_weight, models[model].params, targets))
        for target in targets:
            by_layer = layers.setdefault(model, {}).setdefault(target.place.path, {})
            if target.place.layer in by_layer:
                raise ValueError(f"{file}: {model}.{target.module} has two adapters, the second one {module}")
            by_layer[target.place.layer] = _of(change, target)
    return {model: _tree(by_layer, models[model].params, dtype) for model, by_layer in layers.items()}


def save_lora(
    directory: str | Path, adapters: Mapping[str, Any], models: Mapping[str, Pretrained], *, scale: float = 1.0
) -> Path:
    """Save adapters in diffusers' format; `pipeline.load_lora_weights(directory)` loads them in PyTorch.

    Args:
        directory: where to save; created if missing. It must not contain such a file.
        adapters: adapters by the networks' names; see `load_lora`.
        models: the networks by the same names.
        scale: alpha / rank of the training, which is multiplied into `up`.

    Returns:
        the file.

    Raises:
        ValueError: the file exists, or an adapter belongs to no kernel of its network, or is not of low rank.
    """
    path = Path(directory) / FILE
    if path.exists():
        raise ValueError(f"{path} exists already")
    tensors: dict[str, np.ndarray] = {}
    for model, tree in adapters.items():
        known = kernels(models[model], architecture(models[model].config))
        spots = {(place.path, place.layer): (module, place) for module, place in known.items()}
        for kernel, layer, down, up in _single(tree, {path for path, layer in spots if layer is not None}):
            if (kernel, layer) not in spots:
                raise ValueError(f"{model} has no kernel {'/'.join(kernel)}, layer {layer}")
            module, place = spots[kernel, layer]
            up = (up * np.asarray(scale, up.dtype)).T
            up = up.reshape(*up.shape, *(1,) * (len(place.shape) - 2))
            tensors[f"{model}.{module}.lora_A.weight"] = np.ascontiguousarray(down.transpose(np.argsort(place.axes)))
            tensors[f"{model}.{module}.lora_B.weight"] = np.ascontiguousarray(up)
    with replacing(path) as unfinished:
        write_tensors(tensors, unfinished)
    return path


def _single(
    tree: Any, stacked: set[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray, np.ndarray]]:
    """Yield adapters as (path of the kernel, layer, down, up), except zeros, which stand for layers without one."""
    for path, pair in pairs(tree):
        if "delta" in pair:
            raise ValueError(
                f"{'/'.join(path)} is changed by what is of no low rank, as LoHa, LoKr and DoRA do: merge it instead"
            )
        down, up = np.asarray(pair["down"]), np.asarray(pair["up"])
        if path not in stacked:
            yield path, None, down, up
            continue
        for layer in range(len(up)):
            if down[layer].any() or up[layer].any():
                yield path, layer, down[layer], up[layer]


def _file(path: Path) -> Path:
    return find_weights(path, FILE.removesuffix(".safetensors")) if path.is_dir() else path


def _settings(file: Path) -> dict[str, Any]:
    """Read PEFT's settings from the file's metadata or from adapter_config.json."""
    metadata, path = open_metadata(file), file.with_name("adapter_config.json")
    if METADATA in metadata:
        return parse_json(metadata[METADATA], f"{METADATA} of {file}")
    return read_json(path) if path.exists() else {}


def _scale(group: Group, settings: Mapping[str, Any], name: str) -> float:
    """Return a module's alpha / rank; PEFT's settings have them by pattern, with or without the network's name."""
    model, _, module = name.partition(".")
    settings = {key.removeprefix(f"{model}."): value for key, value in settings.items()}
    settings = {
        name: kind.check(name, settings[name]) for name, kind in SETTINGS.items() if settings.get(name) is not None
    }

    def of_module(patterns: str, default: Any) -> Any:
        entries = settings.get(patterns, {}).items()
        return next((value for pattern, value in entries if _matches(pattern, module)), default)

    rank = rank_of(group)
    if rank is None:
        rank = of_module("rank_pattern", settings.get("r"))
        if rank is None:
            return 1.0  # no factors: LyCORIS then stores the requested rank as alpha
    elif "alpha" in group:
        return float(np.asarray(group["alpha"][1][()]).reshape(())) / rank
    alpha = of_module("alpha_pattern", settings.get("lora_alpha", settings.get("alpha", rank)))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    """Return whether the end of a module's name matches PEFT's pattern, a name or a regular expression.

    Untrusted expressions may take exponential time, so at most two repetitions are allowed, and none of groups.
    """
    repeats = sum(map(pattern.count, "*+?"))
    if len(pattern) > 300 or repeats > 2 or "{" in pattern or re.search(r"\)[*+?]", pattern):
        raise ValueError(f"patterns of modules must be names or expressions of two repetitions, got {pattern!r:.80}")
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error as error:
        raise ValueError(f"a pattern of modules is no regular expression: {pattern!r:.80}: {error}") from None


def _weight(params: Params, targets: tuple[Target, ...]) -> np.ndarray:
    """Join the kernels of a file's module, [out, in, *size]."""
    first = targets[0].place
    weight = np.empty((sum(target.place.shape[0] for target in targets), *first.shape[1:]))
    for _, place, rows in targets:
        leaf = trees.get(params, place.path)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError("DoRA needs the networks' parameters, not their shapes alone")
        kernel = np.asarray(leaf if place.layer is None else leaf[place.layer], np.float64)
        weight[rows] = kernel.transpose(np.argsort(place.axes))
    return weight


def _of(change: Change, target: Target) -> Change:
    """Return a kernel's part of a change: (down [*size, in, rank], up [rank, out]), or [*size, in, out]."""
    _, place, rows = target
    if not isinstance(change, tuple):
        return change[rows].transpose(place.axes)
    down, up = change
    return down.transpose(place.axes), up[rows].T


def _tree(kernels: Mapping[tuple[str, ...], Layers], params: Params, dtype: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, layers in kernels.items():
        shape = trees.get(params, path).shape
        pairs = all(isinstance(change, tuple) for change in layers.values())
        adapter = _pair(layers, shape) if pairs else {"delta": _delta(layers, shape)}
        trees.put(tree, path, {name: jnp.asarray(value, dtype) for name, value in adapter.items()})
    return tree


def _pair(layers: Mapping[int | None, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if None in layers:
        down, up = layers[None]
        return {"down": down, "up": up}
    rank = max(down.shape[-1] for down, _ in layers.values())
    down, up = np.zeros((*shape[:-1], rank)), np.zeros((shape[0], rank, shape[-1]))
    for layer, (a, b) in layers.items():
        down[layer, ..., : a.shape[-1]], up[layer, : len(b)] = a, b
    return {"down": down, "up": up}


def _delta(layers: Mapping[int | None, Change], shape: tuple[int, ...]) -> np.ndarray:
    delta = np.zeros(shape)
    for layer, change in layers.items():
        # The layers of a kernel may have different kinds of adapters.
        delta[... if layer is None else layer] = change[0] @ change[1] if isinstance(change, tuple) else change
    return delta
