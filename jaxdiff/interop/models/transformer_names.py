"""Names of Stable Diffusion 3's and Flux's transformers in their authors' code.

There, one module often corresponds to several modules of diffusers, e.g. one matrix product for queries, keys and
values. So a name maps to modules of diffusers, each with its rows, as indices of equal parts of the tensor:

    {"double_blocks.0.img_attn.qkv": {"transformer_blocks.0.attn.to_q": (0,), [...].to_k: (1,), [...].to_v: (2,)}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Modules", "flux_modules", "rows", "sd3_modules"]

Modules = dict[str, dict[str, tuple[int, ...]]]

EMBED = "time_text_embed.{}_embedder.linear_{}"
SHIFT_FIRST = (1, 0)  # the authors' code has shift before scale, diffusers scale before shift

FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{theirs}_in.{half}_layer": EMBED.format(ours, i)
        for theirs, ours in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for i, half in ((1, "in"), (2, "out"))
    },
    "final_layer.linear": "proj_out",
}
FLUX_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
FLUX_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
SD3 = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    **{
        f"{theirs}_embedder.mlp.{2 * (i - 1)}": EMBED.format(ours, i)
        for theirs, ours in (("t", "timestep"), ("y", "text"))
        for i in (1, 2)
    },
    "final_layer.linear": "proj_out",
}
SD3_BLOCK = {
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
QKV2 = ("attn2.to_q", "attn2.to_k", "attn2.to_v")


def flux_modules(config: Mapping[str, Any]) -> Modules:
    """Map the authors' names in a FluxTransformer2DModel to diffusers' modules with their rows.

    Args:
        config: its fields, of which num_layers and num_single_layers are used.
    """
    mapping: Modules = {name: {ours: (0,)} for name, ours in FLUX.items()}
    mapping["final_layer.adaLN_modulation.1"] = {"norm_out.linear": SHIFT_FIRST}
    for i in range(config.get("num_layers", 19)):
        theirs, ours = f"double_blocks.{i}.", f"transformer_blocks.{i}."
        mapping |= {theirs + name: {ours + module: (0,)} for name, module in FLUX_DOUBLE.items()}
        mapping[f"{theirs}img_attn.qkv"] = {ours + module: (part,) for part, module in enumerate(QKV)}
        mapping[f"{theirs}txt_attn.qkv"] = {ours + module: (part,) for part, module in enumerate(ADDED)}
    for i in range(config.get("num_single_layers", 38)):
        theirs, ours = f"single_blocks.{i}.", f"single_transformer_blocks.{i}."
        mapping |= {theirs + name: {ours + module: (0,)} for name, module in FLUX_SINGLE.items()}
        # The feed-forward layer is four times as wide.
        split: dict[str, tuple[int, ...]] = {ours + module: (part,) for part, module in enumerate(QKV)}
        mapping[f"{theirs}linear1"] = split | {f"{ours}proj_mlp": (3, 4, 5, 6)}
    return mapping


def sd3_modules(config: Mapping[str, Any]) -> Modules:
    """Map the authors' names in an SD3Transformer2DModel to diffusers' modules with their rows.

    Args:
        config: its fields, of which num_layers is used.
    """
    mapping: Modules = {name: {ours: (0,)} for name, ours in SD3.items()}
    mapping["final_layer.adaLN_modulation.1"] = {"norm_out.linear": SHIFT_FIRST}
    last = config.get("num_layers", 18) - 1
    for i in range(last + 1):
        theirs, ours = f"joint_blocks.{i}.", f"transformer_blocks.{i}."
        mapping |= {theirs + name: {ours + module: (0,)} for name, module in SD3_BLOCK.items()}
        for name, sharing in (("x_block.attn", QKV), ("context_block.attn", ADDED), ("x_block.attn2", QKV2)):
            mapping[f"{theirs}{name}.qkv"] = {ours + module: (part,) for part, module in enumerate(sharing)}
    # The last block does not update the text, whose norm is modulated like the network's last norm.
    mapping[f"joint_blocks.{last}.context_block.adaLN_modulation.1"] = {
        f"transformer_blocks.{last}.norm1_context.linear": SHIFT_FIRST
    }
    return mapping


def rows(total: int, modules: Mapping[str, tuple[int, ...]], module: str) -> np.ndarray:
    """Return the rows of a tensor that belong to a module.

    Args:
        total: number of rows of the tensor.
        modules: the modules that share the tensor, with the indices of their parts.
        module: one of these modules.

    Raises:
        ValueError: the number of rows is no multiple of the number of parts.
    """
    parts = sum(map(len, modules.values()))
    if total % parts:
        raise ValueError(f"{total} rows cannot be split into {parts} equal parts, as {', '.join(modules)} need")
    return np.arange(total).reshape(parts, -1)[list(modules[module])].reshape(-1)
