"""Names of a network's modules in files of adapters.

Names with underscores instead of dots cannot be parsed. So all possible names are derived from the network's keys, and
the file's names are looked up among them. In the names of the authors, a module of Stable Diffusion 3 or Flux may stand
for several modules, each with some of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.interop.formats.keys import TensorSlot, places
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained
from jaxdiff.interop.models.blocks import RESNET, WHOLE, unet_blocks
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.transformer_names import flux_modules, rows, sd3_modules
from jaxdiff.quantize import check_unquantized

__all__ = ["Network", "Target", "find", "kernels", "network"]

DENOISERS = "unet", "transformer"
# Prefixes of names, and the networks they may refer to.
PREFIXES = {
    "lora_unet_": DENOISERS,
    "lora_transformer_": DENOISERS,
    "lycoris_": DENOISERS,
    "diffusion_model.": DENOISERS,
    "model.diffusion_model.": DENOISERS,
    "": DENOISERS,
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),  # T5: Flux's second encoder
    "text_encoders.clip_l.transformer.": ("text_encoder",),
    "text_encoders.clip_g.transformer.": ("text_encoder_2",),
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", "text_encoder_2"),
}
TABLES = {"FluxTransformer2DModel": flux_modules, "SD3Transformer2DModel": sd3_modules}


class Target(NamedTuple):
    """A kernel that belongs to a file's module.

    Attributes:
        module: its key without ".weight".
        place: its slot in the parameters.
        rows: rows of the file's module that belong to this kernel.
    """

    module: str
    place: TensorSlot
    rows: np.ndarray


class Network(NamedTuple):
    """Modules with a kernel by all their possible names in a file; None for names that are ambiguous."""

    spec: ModelSpec
    modules: dict[str, tuple[Target, ...] | None]


def kernels(loaded: Pretrained, spec: ModelSpec) -> dict[str, TensorSlot]:
    """Return the slots of modules with a kernel, by key without ".weight"."""
    check_unquantized(loaded.params, "adapters are read and saved")
    known = places(loaded.params, spec.rename).items()
    return {key.removesuffix(".weight"): place for key, place in known if place.path[-1] == "kernel"}


def network(loaded: Pretrained) -> Network:
    """Return a network with all names of its modules."""
    spec = architecture(loaded.config)
    slots = kernels(loaded, spec)
    targets_of: dict[str, tuple[Target, ...] | None] = {}
    for name, targets in _named(slots, loaded.config):
        for written in {name, name.replace(".", "_")}:
            same = targets_of.get(written, targets)
            known = same is not None and [t.module for t in same] == [t.module for t in targets]
            targets_of[written] = targets if known else None
    return Network(spec, targets_of)


def _named(slots: Mapping[str, TensorSlot], config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Target, ...]]]:
    blocks = _blocks(config)
    for module, place in slots.items():
        target = (Target(module, place, np.arange(place.shape[0])),)
        for name in _names(module) | ({_original(module, blocks)} if blocks else set()):
            yield name, target
    for name, sharing in TABLES.get(config["_class_name"], lambda config: {})(config).items():
        if all(module in slots for module in sharing):
            total = sum(slots[module].shape[0] for module in sharing)
            yield name, tuple(Target(module, slots[module], rows(total, sharing, module)) for module in sharing)


def _names(module: str) -> set[str]:
    # Names of a text encoder's modules may contain or omit the module that wraps all others.
    inside = module.removeprefix("text_model.")
    names = {module, inside, f"text_model.{inside}"}
    # diffusers' older names: "to_out_lora" for "to_out.0"; in text encoders "to_q_lora" for "q_proj".
    names |= {name.removesuffix(".0") for name in names if name.endswith("to_out.0")}
    old = r"\.(q|k|v|out)_proj$"
    return names | {re.sub(old, r".to_\1", name) for name in names if re.search(old, name)}


def _blocks(config: Mapping[str, Any]) -> dict[str, str]:
    """Map diffusers' names of a U-Net's blocks to those of Stable Diffusion's original code."""
    layers = config.get("layers_per_block", 2)
    if config["_class_name"] != "UNet2DConditionModel" or not isinstance(layers, int):
        return {}
    types = config.get("down_block_types", (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"))
    return unet_blocks(len(types), layers, {i for i, kind in enumerate(types) if "CrossAttn" in kind})


def _original(module: str, blocks: Mapping[str, str]) -> str:
    """Return the name of a U-Net's module in the original code, which kohya's SDXL files use."""
    embedding = {f"add_embedding.linear_{i}": f"label_emb.0.{2 * (i - 1)}" for i in (1, 2)}
    match = re.fullmatch(r"((?:\w+_blocks\.\d+|mid_block)\.(\w+)\.\d+)\.(.+)", module)
    if match is None or match[1] not in blocks:
        return (WHOLE | embedding).get(module, module)
    parts = {"resnets": RESNET, "downsamplers": {"conv": "op"}}.get(match[2], {})
    return f"{blocks[match[1]]}.{parts.get(match[3], match[3])}"


def find(name: str, networks: Mapping[str, Network]) -> tuple[str, tuple[Target, ...]]:
    """Return the network and the kernels of a module in a file; no kernels if there are none."""
    candidates = [(model, name.removeprefix(f"{model}.")) for model in networks if name.startswith(f"{model}.")]
    for prefix, meant in PREFIXES.items():
        candidates += [(model, name.removeprefix(prefix)) for model in meant if name.startswith(prefix)]
    if len(networks) == 1:
        candidates.append((next(iter(networks)), name.removeprefix("base_model.model.")))
    for model, module in candidates:
        if model not in networks:
            continue
        spec, modules = networks[model]
        module = module.replace(".processor.", ".")
        alias = spec.alias(f"{module}.weight") or ""
        targets = modules.get(module) or modules.get(alias.removesuffix(".weight"))
        if targets is not None:
            return model, targets
    return "", ()
