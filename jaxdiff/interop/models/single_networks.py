"""Networks and autoencoders of single files: configs from the tensors' shapes, and diffusers' names.

The arguments of each function are the tensors of one model by the authors' names, without the prefix of a file, and
fields of the config that do not follow from them. The result is (config, tensors) in diffusers' names. Unknown names
are not changed, and are an error later, since they do not belong to the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop.formats.shapes import count, shape, side
from jaxdiff.interop.formats.views import Rows
from jaxdiff.interop.models.blocks import RESNET, WHOLE, unet_blocks, unet_layout
from jaxdiff.interop.models.transformer_names import Modules, flux_modules, rows, sd3_modules

__all__ = ["flux_part", "sd3_part", "unet_part", "vae_part"]

Tensors = Mapping[str, Any]
Config = dict[str, Any]
EMBEDDINGS = {"label_emb.0.0": "linear_1", "label_emb.0.2": "linear_2"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
VAE_REST = {
    "encoder.norm_out": "encoder.conv_norm_out", "decoder.norm_out": "decoder.conv_norm_out",
    "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1", ".nin_shortcut": ".conv_shortcut",
}  # fmt: skip


def unet_part(tensors: Tensors, overrides: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Convert a U-Net of Stable Diffusion 1, 2 or XL, of XL's refiner, or for inpainting.

    The number of heads does not follow from the tensors: it is 8, or, from Stable Diffusion 2 on, where projections are
    matrices, there are 64 features per head.
    """
    if "label_emb.weight" in tensors:
        raise ValueError("a U-Net with a table of classes, such as the 4x upscaler's, is not read from a single file")
    levels, blocks, _ = unet_layout(tensors)
    entries = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [side(tensors, f"{entry}.0.out_layers.3.weight", 0) for entry in entries]
    depths = [count(tensors, f"{entry}.1.transformer_blocks") for entry in entries]
    bottom = count(tensors, "middle_block.1.transformer_blocks")
    if not bottom or depths[-1] not in (0, bottom):
        raise ValueError(f"transformers of {depths} layers by level and {bottom} at the bottom are not supported")
    linear = len(shape(tensors, "middle_block.1.proj_in.weight")) == 2
    cross = side(tensors, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1)
    channels = side(tensors, "input_blocks.0.0.weight", 1)
    vector = side(tensors, "label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in tensors else None
    unclip = vector is not None and cross == 1024
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": channels,
        "out_channels": side(tensors, "out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), bottom],
        "cross_attention_dim": cross,
        "use_linear_projection": linear,
        "projection_class_embeddings_input_dim": vector,
        "class_embed_type": "projection" if unclip else None,
        "addition_embed_type": "text_time" if vector and not unclip else None,
        "addition_time_embed_dim": 256 if vector and not unclip else None,
        "sample_size": 128 if vector and not unclip else 96 if cross == 1024 and channels == 4 else 64,
    }
    if "attention_head_dim" not in overrides:
        # In the reference, the number of heads is called the size of a head.
        config["attention_head_dim"] = [_heads(width, 64) for width in widths] if linear else 8
    attending = {level for level, depth in enumerate(depths) if depth}
    theirs = {entry: block for block, entry in unet_blocks(levels, blocks, attending).items()}
    embedding = "class_embedding" if unclip else "add_embedding"
    return config | dict(overrides), _renamed(tensors, lambda name: _unet_name(name, theirs, embedding))


def _heads(width: int, size: int) -> int:
    if width % size:
        raise ValueError(f"the tensors don't tell the heads, {width} is no multiple of {size}: give attention_head_dim")
    return width // size


def _unet_name(module: str, blocks: Mapping[str, str], embedding: str) -> str:
    renamed = {theirs: ours for ours, theirs in WHOLE.items()}
    if module in renamed:
        return renamed[module]
    if module in EMBEDDINGS:
        return f"{embedding}.{EMBEDDINGS[module]}"
    match = re.fullmatch(r"(middle_block\.\d+|(?:in|out)put_blocks\.\d+\.\d+)\.(.+)", module)
    if match is None or match[1] not in blocks:
        return module
    block, part = blocks[match[1]], match[2]
    parts = {theirs: ours for ours, theirs in RESNET.items()} if ".resnets." in block else {"op": "conv"}
    return f"{block}.{parts.get(part, part)}"


def vae_part(tensors: Tensors, overrides: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Convert an AutoencoderKL; overrides must contain scaling_factor, which does not follow from the tensors."""
    if "scaling_factor" not in overrides:
        raise ValueError(
            "the factor of an autoencoder's latents does not follow from its tensors: give scaling_factor, and "
            "shift_factor if there is one, in the config or in a config.json next to the file (0.18215 for Stable "
            "Diffusion 1 and 2, 0.13025 for XL, 1.5305 and 0.0609 for 3, 0.3611 and 0.1159 for Flux.1)"
        )
    levels = count(tensors, "encoder.down")
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": side(tensors, "encoder.conv_in.weight", 1),
        "out_channels": side(tensors, "decoder.conv_out.weight", 0),
        "latent_channels": side(tensors, "decoder.conv_in.weight", 1),
        "block_out_channels": [side(tensors, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(tensors, "encoder.down.0.block"),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }
    # Tensors of the training losses, and averages, are dropped.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("loss.", "model_ema."))}
    renamed = _renamed(tensors, lambda module: _vae_name(module, levels))
    for name, tensor in renamed.items():
        if ".attentions." in name and len(tensor.shape) > 2:
            renamed[name] = Rows(tensor, ndim=2)
    return config | dict(overrides), renamed


def _vae_name(module: str, levels: int) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)", module):
        return f"{match[1]}.mid_block.attentions.0.{VAE_ATTENTION.get(match[2], match[2])}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|(?:down|up)sample)\.(.+)", module):
        side, level, kind, block, rest = match.groups()
        # The original counts levels of encoder and decoder from the finest.
        number = int(level) if side == "encoder.down" else levels - 1 - int(level)
        name = f"{kind}rs.0" if block is None else f"resnets.{block}"
        module = f"{side}_blocks.{number}.{name}.{rest}"
    for theirs, ours in VAE_REST.items():
        module = module.replace(theirs, ours)
    return module


def sd3_part(tensors: Tensors, overrides: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Convert a transformer of Stable Diffusion 3 or 3.5; without a norm of queries, heads have 64 features."""
    width, channels, patch, _ = shape(tensors, "x_embedder.proj.weight", 4)
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    head = side(tensors, norm, 0) if norm in tensors else overrides.get("attention_head_dim", 64)
    layers = count(tensors, "joint_blocks")
    config = {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": side(tensors, "final_layer.linear.weight", 0) // patch**2,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": _heads(width, head),
        "joint_attention_dim": side(tensors, "context_embedder.weight", 1),
        "caption_projection_dim": width,
        "pooled_projection_dim": side(tensors, "y_embedder.mlp.0.weight", 1),
        "pos_embed_max_size": math.isqrt(side(tensors, "pos_embed", 1)),
        "qk_norm": "rms_norm" if norm in tensors else None,
        "dual_attention_layers": [i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors],
    }
    renamed = _split(tensors, sd3_modules(config))
    renamed["pos_embed.pos_embed"] = renamed.pop("pos_embed")
    return config | dict(overrides), renamed


def flux_part(tensors: Tensors, overrides: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Convert a transformer of Flux.1: dev, schnell, and those with an image as additional input."""
    width, channels = shape(tensors, "img_in.weight", 2)
    head = side(tensors, "double_blocks.0.img_attn.norm.query_norm.scale", 0)
    config = {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": side(tensors, "final_layer.linear.weight", 0),
        "num_layers": count(tensors, "double_blocks"),
        "num_single_layers": count(tensors, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": _heads(width, head),
        "joint_attention_dim": side(tensors, "txt_in.weight", 1),
        "pooled_projection_dim": side(tensors, "vector_in.in_layer.weight", 1),
        "guidance_embeds": "guidance_in.in_layer.weight" in tensors,
        # Rows and columns have equal shares of a head, except for the features of the image index.
        "axes_dims_rope": [head // 8, 7 * head // 16, 7 * head // 16],
    }
    return config | dict(overrides), _split(tensors, flux_modules(config))


def _renamed(tensors: Tensors, rename: Callable[[str], str]) -> dict[str, Any]:
    renamed = {}
    for name, tensor in tensors.items():
        module, dot, leaf = name.rpartition(".")
        renamed[rename(module) + dot + leaf] = tensor
    return renamed


def _split(tensors: Tensors, modules: Modules) -> dict[str, Any]:
    """Split tensors that several modules share into each module's rows, by diffusers' names."""
    renamed = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        leaf = "weight" if leaf == "scale" else leaf
        sharing = modules.get(module)
        if sharing is None:
            renamed[name] = tensor
        elif list(sharing.values()) == [(0,)]:
            renamed[f"{next(iter(sharing))}.{leaf}"] = tensor
        else:
            for ours in sharing:
                renamed[f"{ours}.{leaf}"] = Rows(tensor, rows(side(tensors, name, 0), sharing, ours))
    return renamed
