"""Files of low-rank adapters: those of diffusers and PEFT, old and new, and of kohya's scripts.

A file names an adapted module in one of three ways:

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight      by its key
    unet.down_blocks.0.[...].attn1.processor.to_q_lora.down.weight                     by diffusers' older key
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight

The last cannot be taken apart, since names hold underscores as well. So names are made from the network's keys, and
the file's are looked up among them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.architecture import Architecture
from jaxdiff.interop.checkpoint import Loaded, architecture
from jaxdiff.interop.files import PICKLES, Tensor, open_tensors, read_json
from jaxdiff.interop.keys import Place, places
from jaxdiff.networks.lora import pairs, put

__all__ = ["load_lora", "save_lora"]

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
METADATA = "lora_adapter_metadata"
Layers = dict[int | None, tuple[np.ndarray, np.ndarray]]  # (down, up) by layer of a stacked kernel, otherwise by None
KOHYA = {
    "lora_unet_": ("unet", "transformer"),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3",),
}
# The end of a tensor's name, and what it holds; what stands before it names the module. Older names of diffusers
# write "to_q_lora" for the module "to_q", hence the underscore.
ENDS = {
    r"\.lora_A(\.\w+)?\.weight": "down",
    r"\.lora_B(\.\w+)?\.weight": "up",
    r"[._]lora(_linear_layer)?\.down\.weight": "down",
    r"[._]lora(_linear_layer)?\.up\.weight": "up",
    r"\.lora_down\.weight": "down",
    r"\.lora_up\.weight": "up",
    r"\.alpha": "alpha",
}


class _Network(NamedTuple):
    """A network's modules with a kernel, by every name that a file may have for them; None where two share a name."""

    built: Architecture
    modules: dict[str, tuple[str, Place] | None]


def load_lora(path: str | Path, models: Mapping[str, Loaded], *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Reads a file of adapters, for `networks.lora.merge` and `adapted` with a scale of 1.

    The file's alpha / rank is multiplied into `up`. Where adapters of stacked layers have several ranks, or some
    layers have none, they are filled up with zeros.

    Args:
        path: a .safetensors file, or a directory with one.
        models: the networks by the name that the file has for them: "unet", "transformer", "text_encoder",
            "text_encoder_2". A file without such names needs a single one. Of their parameters the shapes matter.
        dtype: of the adapters.

    Returns:
        The adapters by the same names, of the networks that the file adapts.

    Raises:
        ValueError: tensors that belong to no kernel of these networks, pairs that are not whole, or other shapes than
            the kernels'; the message lists them.
    """
    file = _file(Path(path))
    networks = {name: _network(loaded) for name, loaded in models.items()}
    parts: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
    where: dict[tuple[str, str], Place] = {}
    unknown = []
    for name, tensor in open_tensors(file).items():
        module, role = _ending(name)
        model, key, place = _find(module, networks)
        if role is None or place is None or role in parts.get((model, key), {}):
            unknown.append(name)
        else:
            parts.setdefault((model, key), {})[role] = name, tensor
            where[model, key] = place
    if unknown:
        raise ValueError(f"{file}: {len(unknown)} tensors belong to no kernel of the networks: {', '.join(unknown)}")

    settings = _settings(file)
    layers: dict[str, dict[tuple[str, ...], Layers]] = {}
    for (model, key), part in parts.items():
        place = where[model, key]
        pair = _read(part, place, _scale(part, settings, f"{model}.{key}"))
        layers.setdefault(model, {}).setdefault(place.path, {})[place.layer] = pair
    return {model: _tree(held, models[model].params, dtype) for model, held in layers.items()}


def save_lora(
    directory: str | Path, adapters: Mapping[str, Any], models: Mapping[str, Loaded], *, scale: float = 1.0
) -> Path:
    """Writes adapters as diffusers does; `pipeline.load_lora_weights(directory)` reads them in PyTorch.

    Args:
        directory: is made where it does not exist; must not hold such a file.
        adapters: by the networks' names; see `load_lora`.
        models: the networks.
        scale: alpha / rank that they were trained with; it is multiplied into `up`.

    Returns:
        The file.

    Raises:
        ValueError: there is such a file, or an adapter is of no kernel of its network.
    """
    from safetensors.numpy import save_file

    path = Path(directory) / FILE
    if path.exists():
        raise ValueError(f"{path} exists already")
    tensors: dict[str, np.ndarray] = {}
    for model, tree in adapters.items():
        known = _kernels(models[model], architecture(models[model].config))
        spots = {(place.path, place.layer): (module, place) for module, place in known}
        for kernel, layer, down, up in _single(tree, {path for path, layer in spots if layer is not None}):
            if (kernel, layer) not in spots:
                raise ValueError(f"{model} has no kernel {'/'.join(kernel)}, layer {layer}")
            module, place = spots[kernel, layer]
            up = (up * np.asarray(scale, up.dtype)).T
            up = up.reshape(*up.shape, *(1,) * (len(place.shape) - 2))
            tensors[f"{model}.{module}.lora_A.weight"] = np.ascontiguousarray(down.transpose(np.argsort(place.axes)))
            tensors[f"{model}.{module}.lora_B.weight"] = np.ascontiguousarray(up)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path


def _single(
    tree: Any, stacked: set[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray, np.ndarray]]:
    """Adapters one by one: (path of the kernel, layer, down, up); not those that are zero, of layers without any."""
    for path, pair in pairs(tree):
        down, up = np.asarray(pair["down"]), np.asarray(pair["up"])
        if path not in stacked:
            yield path, None, down, up
            continue
        for layer in range(len(up)):
            if down[layer].any() or up[layer].any():
                yield path, layer, down[layer], up[layer]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        pickled = [p.name for p in path.iterdir() if p.suffix in PICKLES]
        raise ValueError(
            f"{path} must hold one .safetensors file, it holds {', '.join(p.name for p in files) or 'none'}"
            + (f"; {', '.join(pickled)} is pickled" if pickled else "")
        )
    return files[0]


def _ending(name: str) -> tuple[str, str | None]:
    for end, role in ENDS.items():
        if match := re.fullmatch(f"(.+?){end}", name):
            return match[1], role
    return name, None


def _kernels(loaded: Loaded, built: Architecture) -> list[tuple[str, Place]]:
    """The modules with a kernel, by key without ".weight"."""
    known = places(loaded.params, built.rename).items()
    return [(key.removesuffix(".weight"), place) for key, place in known if place.path[-1] == "kernel"]


def _network(loaded: Loaded) -> _Network:
    built = architecture(loaded.config)
    found: dict[str, tuple[str, Place] | None] = {}
    for module, place in _kernels(loaded, built):
        for name in _names(module, loaded.config):
            found[name] = None if name in found else (module, place)
    return _Network(built, found)


def _names(module: str, config: Mapping[str, Any]) -> set[str]:
    # A file may name a text encoder's modules from outside or from inside of the one module that wraps them all.
    inside = module.removeprefix("text_model.")
    names = {module, inside, f"text_model.{inside}"}
    # diffusers' older names: "to_out_lora" for "to_out.0"; in text encoders "to_q_lora" for "q_proj".
    names |= {name.removesuffix(".0") for name in names if name.endswith("to_out.0")}
    old = r"\.(q|k|v|out)_proj$"
    names |= {re.sub(old, r".to_\1", name) for name in names if re.search(old, name)}
    if config["_class_name"] == "UNet2DConditionModel":
        names.add(_original(module, config))
    return names | {name.replace(".", "_") for name in names}


def _original(module: str, config: Mapping[str, Any]) -> str:
    """A module of diffusers' U-Net by the name in Stable Diffusion's original code, which kohya's SDXL files use."""
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        return module
    if match := re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(.*)", module
    ):
        way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        # On the way down a block ends in its downsampler, after one input block more, the first convolution.
        row = block * (layers + 1) + (index if kind in ("resnets", "attentions") else layers) + (way == "down")
        types = config.get(f"{way}_block_types", ())
        last = 2 if block < len(types) and "CrossAttn" in types[block] else 1
        column = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": last}[kind]
        name = f"{'input' if way == 'down' else 'output'}_blocks.{row}.{column}"
        rest = ".op" if kind == "downsamplers" else rest
    elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)(.*)", module):
        kind, rest = match[1], match[3]
        name = f"middle_block.{1 if kind == 'attentions' else 2 * int(match[2])}"
    else:
        outside = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
        outside |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
        return (outside | {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}).get(module, module)
    within = {".conv1": ".in_layers.2", ".conv2": ".out_layers.3", ".time_emb_proj": ".emb_layers.1"}
    return name + (within | {".conv_shortcut": ".skip_connection"}).get(rest, rest)


def _find(name: str, networks: Mapping[str, _Network]) -> tuple[str, str, Place | None]:
    """What a file means by a module: (network, module, where its kernel is); None where there is none."""
    candidates = [(model, name.removeprefix(f"{model}.")) for model in networks if name.startswith(f"{model}.")]
    for prefix, meant in KOHYA.items():
        candidates += [(model, name.removeprefix(prefix)) for model in meant if name.startswith(prefix)]
    if len(networks) == 1:
        candidates.append((next(iter(networks)), name.removeprefix("base_model.model.")))
    for model, module in candidates:
        if model not in networks:
            continue
        built, modules = networks[model]
        module = module.replace(".processor.", ".")
        alias = built.alias(f"{module}.weight") or ""
        spot = modules.get(module) or modules.get(alias.removesuffix(".weight"))
        if spot is not None:
            return model, *spot
    return "", name, None


def _settings(file: Path) -> dict[str, Any]:
    """PEFT's settings, from the file's own metadata or from the file beside it."""
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata() or {}
    if METADATA in metadata:
        return json.loads(metadata[METADATA])
    beside = file.with_name("adapter_config.json")
    return read_json(beside) if beside.exists() else {}


def _scale(part: Mapping[str, tuple[str, Tensor]], settings: Mapping[str, Any], name: str) -> float:
    """Alpha / rank of a module; PEFT's settings have it by pattern, with or without the network's name."""
    if "down" not in part or "up" not in part:
        held = ", ".join(held for held, _ in part.values())
        raise ValueError(f"{name} needs both halves of an adapter, the file has {held}")
    rank = part["down"][1].shape[0]
    if "alpha" in part:
        return float(np.asarray(part["alpha"][1][()]).reshape(())) / rank
    model, _, module = name.partition(".")
    own = {key.removeprefix(f"{model}."): value for key, value in settings.items()}
    alpha = own.get("lora_alpha", rank)
    for pattern, value in (own.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _read(part: Mapping[str, tuple[str, Tensor]], place: Place, scale: float) -> tuple[np.ndarray, np.ndarray]:
    (down_name, down), (up_name, up) = part["down"], part["up"]
    rank, (out, *inside) = down.shape[0], place.shape
    # A 1x1 convolution and a dense layer are the same: some files have one for the other.
    whole = math.prod(down.shape) == rank * math.prod(inside) and math.prod(up.shape) == out * rank
    if not whole or up.shape[:2] != (out, rank):
        raise ValueError(
            f"{down_name} {down.shape} and {up_name} {up.shape} are no adapter of a kernel of shape {place.shape}"
        )
    a = np.asarray(down[()], np.float64).reshape(rank, *inside).transpose(place.axes)
    return a, scale * np.asarray(up[()], np.float64).reshape(out, rank).T


def _tree(held: Mapping[tuple[str, ...], Layers], params: Any, dtype: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, layers in held.items():
        if None in layers:
            down, up = layers[None]
        else:
            leaf = params
            for segment in path:
                leaf = leaf[segment]
            rank = max(down.shape[-1] for down, _ in layers.values())
            down = np.zeros((*leaf.shape[:-1], rank))
            up = np.zeros((leaf.shape[0], rank, leaf.shape[-1]))
            for layer, (a, b) in layers.items():
                down[layer, ..., : a.shape[-1]], up[layer, : len(b)] = a, b
        put(tree, path, {"down": jnp.asarray(down, dtype), "up": jnp.asarray(up, dtype)})
    return tree
