"""OpenAI's U-Nets: UNetModel of improved-diffusion and guided-diffusion.

The tensors differ from `UNet`'s in their names, and in the attention: queries, keys and values are one convolution over
positions, which is read as three matrices. There is no null class: the last class has its row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.formats.fields import SIZE
from jaxdiff.interop.formats.shapes import side
from jaxdiff.interop.formats.views import Rows
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.blocks import RESNET, WHOLE, unet_blocks, unet_layout
from jaxdiff.networks import UNet, as_apply, init
from jaxdiff.schema import optional

__all__ = ["as_diffusers", "openai_config", "openai_unet", "split_attention"]

Config = dict[str, Any]
Tensors = Mapping[str, Any]

# Names of layers in a block -> OpenAI's names.
PARTS = {
    "resnets": RESNET,
    "attentions": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}


def openai_unet(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """OpenAI's UNetModel, with the attention's tensors split into q, k and v.

    Args:
        config: the arguments of the class, with attention_levels, counted from 0, instead of attention_resolutions.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is missing or not supported.
    """
    c = Fields(config, "UNetModel", {"num_classes": optional(SIZE)})
    c.ignore("_class_name", "image_size", "use_checkpoint", "use_fp16", "use_new_attention_order")
    c.expect("dims", 2)
    c.expect("num_heads_upsample", -1, c.get("num_heads", 1))
    base, head_dim = c.get("model_channels", None), c.get("num_head_channels", -1)
    channels, out = c.get("in_channels", 3), c.get("out_channels", 3)
    concat, classes = c.get("concat_channels", 0), c.get("num_classes", None)
    learned = out == 2 * (channels - concat)
    module = UNet(
        tuple(int(base * mult) for mult in c.get("channel_mult", (1, 2, 4, 8))),
        num_blocks=c.get("num_res_blocks", None),
        attention=c.get("attention_levels", ()),
        head_dim=None if head_dim == -1 else head_dim,
        num_heads=c.get("num_heads", 1) if head_dim == -1 else None,
        model_channels=base,
        scale_shift=c.get("use_scale_shift_norm", False),
        resample="resblock" if c.get("resblock_updown", False) else "conv" if c.get("conv_resample", True) else "pool",
        dropout=c.get("dropout", 0),
        num_classes=None if classes is None else classes - 1,
        concat_channels=concat or None,
        out_channels=out // 2 if learned else out,
        learned_variance=learned,
        dtype=dtype,
    )
    c.get("conv_resample", True)
    c.check_all_read()
    size = (2 ** (len(module.widths) - 1),) * 2
    cond = {}
    if classes is not None:
        cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if concat:
        cond["concat"] = jax.ShapeDtypeStruct((1, *size, concat), jnp.float32)
    x = jax.ShapeDtypeStruct((1, *size, channels - concat), jnp.float32)
    blocks = unet_blocks(len(module.widths), module.blocks_at(0), module.attention)
    return ModelSpec(partial(init, module, x=x, cond=cond), as_apply(module), rename=partial(_rename, blocks))


def _rename(blocks: Mapping[str, str], key: str) -> str | None:
    module, leaf = key.rsplit(".", 1)
    if module in WHOLE or module == "class_embedding":
        return f"{WHOLE.get(module, 'label_emb')}.{leaf}"
    match = re.fullmatch(r"((?:\w+_blocks\.\d+|mid_block)\.(\w+)\.\d+)\.(.+)", module)
    if match is None or match[1] not in blocks:
        return None
    # Resampling is done by a residual block or by a separate convolution.
    parts = PARTS[match[2]] | RESNET
    return f"{blocks[match[1]]}.{parts[match[3]]}.{leaf}"


def split_attention(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
    """Split the tensors of queries, keys and values into three each, without reading them.

    Args:
        tensors: tensors of a UNetModel, by name.
        config: its config, see `openai_unet`.

    Returns:
        the tensors by the names of `openai_unet`.

    Raises:
        ValueError: the channels of an attention are no multiple of the number of heads.
    """
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if re.search(r"\.proj_out\.weight$", name):
            renamed[name] = _matrix(tensor)
        match = re.fullmatch(r"(.+)\.qkv\.(weight|bias)", name)
        if match is None:
            renamed.setdefault(name, tensor)
            continue
        for part, rows in zip("qkv", _rows(side(tensors, name, 0), config), strict=True):
            renamed[f"{match[1]}.{part}.{match[2]}"] = _matrix(tensor, rows)
    return renamed


def _matrix(tensor: Any, rows: np.ndarray | None = None) -> Rows:
    """Return a convolution of size 1, [out, in, 1], as a matrix."""
    return Rows(tensor, rows, min(2, len(tensor.shape)))


def _rows(total: int, config: Mapping[str, Any]) -> np.ndarray:
    """Return the rows of q, k and v, [3, C]: the old order has heads first, the new one has q, k and v first."""
    channels, head_dim = total // 3, config.get("num_head_channels", -1)
    num_heads = config.get("num_heads", 1) if head_dim == -1 else channels // head_dim
    if total % (3 * max(num_heads, 1)) or num_heads == 0:
        raise ValueError(f"{channels} channels of attention are no multiple of its heads, as the config has them")
    rows = np.arange(total)
    if config.get("use_new_attention_order", False):
        return rows.reshape(3, channels)
    return rows.reshape(num_heads, 3, channels // num_heads).swapaxes(0, 1).reshape(3, channels)


def openai_config(tensors: Tensors, overrides: Mapping[str, Any]) -> Config:
    """Infer the config of a checkpoint of UNetModel.

    Args:
        tensors: by name.
        overrides: fields that do not follow from the tensors: num_head_channels or num_heads, use_new_attention_order
            (False by default), and concat_channels for super-resolution; or fields that replace the inferred ones.

    Returns:
        a config for `openai_unet`.

    Raises:
        ValueError: the tensors are not those of such a network, or the number of heads is not given.
    """
    if not {"num_heads", "num_head_channels"} & overrides.keys():
        raise ValueError("the tensors don't tell the heads: give num_head_channels or num_heads in the config")
    levels, blocks, resample = unet_layout(tensors)
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [side(tensors, f"{entry}.0.out_layers.3.weight", 0) for entry in firsts]
    base = side(tensors, "time_embed.0.weight", 1)
    config = {
        "_class_name": "UNetModel",
        "in_channels": side(tensors, "input_blocks.0.0.weight", 1),
        "out_channels": side(tensors, "out.2.weight", 0),
        "model_channels": base,
        "channel_mult": [width / base for width in widths],
        "num_res_blocks": blocks,
        "attention_levels": [i for i, entry in enumerate(firsts) if f"{entry}.1.qkv.weight" in tensors],
        "use_scale_shift_norm": side(tensors, f"{firsts[0]}.0.emb_layers.1.weight", 0) == 2 * widths[0],
        "resblock_updown": resample == "resblock",
        "conv_resample": resample == "conv",
        "num_classes": side(tensors, "label_emb.weight", 0) if "label_emb.weight" in tensors else None,
    }
    return config | dict(overrides)


def as_diffusers(config: Mapping[str, Any]) -> Config:
    """Return the config of the same network as diffusers' UNet2DModel, or `config` if there is none.

    There is none if levels of different widths have the same number of heads, if resampling has no parameters, or if
    the first level does not have model_channels channels.

    Args:
        config: see `openai_unet`.
    """
    widths = [int(config["model_channels"] * mult) for mult in config["channel_mult"]]
    levels, scale_shift = config["attention_levels"], config["use_scale_shift_norm"]
    head_dim = config.get("num_head_channels", -1)
    if head_dim == -1:
        dims = {widths[level] // config.get("num_heads", 1) for level in (*levels, len(widths) - 1)}
        head_dim = dims.pop() if len(dims) == 1 else None
    learns = config["resblock_updown"] or config["conv_resample"] or len(widths) == 1
    if head_dim is None or widths[0] != config["model_channels"] or not learns:
        return dict(config)
    plain, way = ("Resnet{}sampleBlock2D", "resnet") if config["resblock_updown"] else ("{}Block2D", "conv")
    blocks = ["Attn{}Block2D" if level in levels else plain for level in range(len(widths))]
    return {
        "_class_name": "UNet2DModel",
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": [name.format("Down") for name in blocks],
        "up_block_types": [name.format("Up") for name in reversed(blocks)],
        "downsample_type": way,
        "upsample_type": way,
        "attention_head_dim": head_dim,
        "attn_norm_num_groups": 32 if scale_shift else None,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": config["num_classes"],
        "dropout": config.get("dropout", 0.0),
    }
