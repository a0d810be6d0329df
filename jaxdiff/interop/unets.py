"""U-Nets of diffusers: UNet2DModel, UNet2DConditionModel, ControlNetModel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.architecture import Architecture, Fields
from jaxdiff.networks import Sinusoidal, UNet, as_apply, init
from jaxdiff.networks.controlnet import ControlNet
from jaxdiff.networks.transformer2d import Transformers

__all__ = ["control_config", "controlnet", "unet_2d", "unet_2d_condition"]

# A block's name on the way down, and on the way up.
PLAIN = "DownBlock2D", "UpBlock2D"
ATTENTION = "AttnDownBlock2D", "AttnUpBlock2D"
RESNET = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

# What a conditional U-Net and its ControlNet have in common.
SHARED = {
    "act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
    "class_embed_type", "cross_attention_dim", "down_block_types", "downsample_padding", "flip_sin_to_cos",
    "freq_shift", "in_channels", "layers_per_block", "mid_block_scale_factor", "mid_block_type", "norm_eps",
    "norm_num_groups", "num_class_embeds", "only_cross_attention", "projection_class_embeddings_input_dim",
    "resnet_time_scale_shift", "transformer_layers_per_block", "upcast_attention", "use_linear_projection",
}  # fmt: skip


def unet_2d(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' UNet2DModel: DDPM, ADM and plain U-Nets.

    The network's null class is the last of the num_class_embeds classes. Where in_channels exceeds out_channels, the
    rest of the input is cond["concat"]. Twice as many channels out as in are a learned variance: apply returns
    (F, frac).

    Args:
        config: fields of its config.json.
        dtype: of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet2DModel")
    c.skip("sample_size", "num_train_timesteps", "_class_name")
    c.only("center_input_sample", False)
    c.only("time_embedding_type", "positional")
    c.only("mid_block_type", "UNetMidBlock2D")
    c.only("mid_block_scale_factor", 1)
    c.only("class_embed_type", None)
    c.only("act_fn", "silu", "swish")
    widths = c.take("block_out_channels", (224, 448, 672, 896))
    c.only("time_embedding_dim", None, 4 * widths[0])
    groups = c.take("norm_num_groups", 32)
    scale_shift = c.only("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift"
    mid_attention = c.take("add_attention", True)
    if c.only("attn_norm_num_groups", None, groups) is None and mid_attention and scale_shift:
        raise ValueError(
            "UNet2DModel: attention at the bottom without a norm, for which scale_shift stands "
            "without attn_norm_num_groups, is not supported"
        )
    attention, resample = _levels(c)
    channels, sizes = _channels(c, 3)
    module = UNet(
        widths,
        blocks=c.take("layers_per_block", 2),
        attention=attention,
        mid_attention=mid_attention,
        head_dim=c.take("attention_head_dim", 8),
        scale_shift=scale_shift,
        resample=resample,
        down_pad=(c.only("downsample_padding", 1, 0), 1),
        dropout=c.take("dropout", 0.0),
        groups=groups,
        eps=c.take("norm_eps", 1e-5),
        time=_time(c),
        num_classes=_classes(c),
        **sizes,
        dtype=dtype,
    )
    c.done()
    return _built(module, channels)


def unet_2d_condition(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' UNet2DConditionModel, as Stable Diffusion 1, 2 and XL use it.

    Where in_channels exceeds out_channels, the rest of the input is cond["concat"]; twice as many channels out as in
    are a learned variance. cond["vector"] is XL's (see `networks.configs.sdxl_vector`) or unCLIP's embedding of an
    image; cond["guidance"] a guidance-distilled network's.

    Args:
        config: fields of its config.json.
        dtype: of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet2DConditionModel")
    c.only("center_input_sample", False)
    c.only("reverse_transformer_layers_per_block", None)
    c.only("dual_cross_attention", False)
    c.only("resnet_skip_time_act", False)
    c.only("resnet_out_scale_factor", 1.0)
    c.only("time_embedding_type", "positional")
    c.only("time_embedding_act_fn", None)
    c.only("timestep_post_act", None)
    c.only("conv_in_kernel", 3)
    c.only("conv_out_kernel", 3)
    c.only("attention_type", "default")
    c.only("class_embeddings_concat", False)
    c.only("cross_attention_norm", None)
    c.skip("sample_size", "mid_block_only_cross_attention")  # the latter is of another kind of mid block
    fields = _conditional(c)
    c.only("time_embedding_dim", None, 4 * fields["widths"][0])
    up = tuple(reversed(c.take("up_block_types", (PLAIN[1], *(CROSS[1],) * 3))))
    _mirrored(fields["attention"], up, CROSS[1], PLAIN[1], len(fields["widths"]))
    channels, sizes = _channels(c, 4)
    module = UNet(
        **fields,
        dropout=c.take("dropout", 0.0),
        guidance_dim=c.take("time_cond_proj_dim", None),
        **sizes,
        dtype=dtype,
    )
    c.done()
    return _built(module, channels, c)


def controlnet(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' ControlNetModel.

    Args:
        config: fields of its config.json.
        dtype: of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "ControlNetModel")
    c.only("controlnet_conditioning_channel_order", "rgb")
    module = ControlNet(
        **_conditional(c),
        hint_channels=c.take("conditioning_channels", 3),
        hint_widths=c.take("conditioning_embedding_out_channels", (16, 32, 96, 256)),
        pooled=c.take("global_pool_conditions", False),
        dtype=dtype,
    )
    channels = c.take("in_channels", 4)
    c.done()
    return _built(module, channels, c)


def control_config(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config of a new ControlNet for a U-Net: `architecture(control_config(unet.config)).init(key)` draws one.

    Args:
        config: fields of a UNet2DConditionModel.
        changes: fields of the ControlNetModel, such as conditioning_channels.
    """
    shared = {name: value for name, value in config.items() if name in SHARED}
    return shared | {"_class_name": "ControlNetModel"} | changes


def _conditional(c: Fields) -> dict[str, Any]:
    """What a conditional U-Net and its ControlNet share."""
    c.skip("upcast_attention", "addition_time_embed_dim", "addition_embed_type_num_heads", "_class_name")
    c.only("mid_block_type", "UNetMidBlock2DCrossAttn")
    c.only("mid_block_scale_factor", 1)
    c.only("act_fn", "silu", "swish")
    c.only("encoder_hid_dim", None)
    c.only("encoder_hid_dim_type", None)
    widths = c.take("block_out_channels", (320, 640, 1280, 1280))
    levels = len(widths)
    down = c.take("down_block_types", (*(CROSS[0],) * 3, PLAIN[0]))
    attention = tuple(i for i, name in enumerate(down) if name == CROSS[0])
    _mirrored(attention, down, CROSS[0], PLAIN[0], levels)
    # The reference calls the number of heads the size of a head.
    sizes = c.take("attention_head_dim", 8)
    heads = c.take("num_attention_heads", None) or sizes
    cross_only = _each(c, "only_cross_attention", False, levels)
    extra = c.only("addition_embed_type", None, "text_time"), c.only("class_embed_type", None, "projection")
    if all(extra):
        raise ValueError("at most one of addition_embed_type and class_embed_type can be set")
    vector = c.take("projection_class_embeddings_input_dim", None)
    return {
        "widths": widths,
        "blocks": _one(c, "layers_per_block", 2),
        "attention": attention,
        "transformer": Transformers(
            depth=_each(c, "transformer_layers_per_block", 1, levels),
            heads=(heads,) * levels if isinstance(heads, int) else heads,
            linear=c.take("use_linear_projection", False),
            cross_only=tuple(i for i in attention if cross_only[i]),
        ),
        "scale_shift": c.only("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift",
        "down_pad": (c.only("downsample_padding", 1, 0), 1),
        "groups": c.take("norm_num_groups", 32),
        "eps": c.take("norm_eps", 1e-5),
        "time": _time(c),
        "num_classes": _classes(c),
        "token_dim": _one(c, "cross_attention_dim", 1280),
        "vector_dim": vector if any(extra) else None,
    }


def _each(c: Fields, name: str, default: Any, levels: int) -> tuple[Any, ...]:
    """A field with one value for each level, or for all."""
    value = c.take(name, default)
    value = value if isinstance(value, tuple) else (value,) * levels
    if len(value) != levels or any(isinstance(v, list) for v in value):
        raise ValueError(f"{name} must be one value or {levels}, got {value}")
    return value


def _one(c: Fields, name: str, default: int) -> int:
    """A field that must have the same value for all levels."""
    value = c.take(name, default)
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    if not isinstance(value, int):
        raise ValueError(f"{name} must be the same number for all levels, got {value}")
    return value


def _mirrored(levels: tuple[int, ...], types: tuple[str, ...], attending: str, plain: str, count: int) -> None:
    wanted = tuple(attending if i in levels else plain for i in range(count))
    if types != wanted:
        raise ValueError(f"the levels' blocks, from the largest size, must be {wanted}, got {types}")


def _levels(c: Fields) -> tuple[tuple[int, ...], str]:
    """The levels with attention, and how the network resamples."""
    down = c.take("down_block_types", (PLAIN[0], *(ATTENTION[0],) * 3))
    up = tuple(reversed(c.take("up_block_types", (*(ATTENTION[1],) * 3, PLAIN[1]))))
    # What the blocks with attention do; the others' names say it.
    own = c.only("downsample_type", "conv", "resnet"), c.only("upsample_type", "conv", "resnet")
    for i, types in enumerate((down, up)):
        known = PLAIN[i], ATTENTION[i], RESNET[i]
        unknown = sorted(set(types) - set(known))
        if unknown:
            raise ValueError(f"UNet2DModel: blocks must be of {', '.join(known)}, got {', '.join(unknown)}")
    sides = [tuple(i for i, name in enumerate(types) if name in ATTENTION) for types in (down, up)]
    if sides[0] != sides[1] or len(down) != len(up):
        raise ValueError(f"UNet2DModel: the way up must mirror the way down, got {down} and, reversed, {up}")
    pairs = [*((name, own[0]) for name in down[:-1]), *((name, own[1]) for name in up[1:])]
    kinds = {kind if name in ATTENTION else "resnet" if name in RESNET else "conv" for name, kind in pairs}
    if len(kinds) > 1:
        raise ValueError("UNet2DModel: all levels must resample the same way, by convolutions or by residual blocks")
    return sides[0], {"conv": "conv", "resnet": "resblock"}[kinds.pop() if kinds else "conv"]


def _channels(c: Fields, default: int) -> tuple[int, dict[str, Any]]:
    """Channels of what is denoised, and the network's attributes that tell the others."""
    given, out = c.take("in_channels", default), c.take("out_channels", default)
    learned = out == 2 * given
    return min(given, out), {
        "concat_channels": given - out if given > out else None,
        "out_channels": given if learned else out,
        "learned_variance": learned,
    }


def _time(c: Fields) -> Sinusoidal:
    return Sinusoidal(cos_first=c.take("flip_sin_to_cos", True), shift=c.take("freq_shift", 0))


def _classes(c: Fields) -> int | None:
    rows = c.take("num_class_embeds", None)
    return None if rows is None else rows - 1


def _built(module: UNet, channels: int, c: Fields | None = None) -> Architecture:
    size = (2 ** (len(module.widths) - 1),) * 2
    shapes: dict[str, tuple[int, ...]] = {}
    if module.num_classes is not None:
        shapes["label"] = (1,)
    if module.token_dim is not None:
        shapes["tokens"] = (1, 1, module.token_dim)
    if module.vector_dim is not None:
        shapes["vector"] = (1, module.vector_dim)
    if module.guidance_dim is not None:
        shapes["guidance"] = (1,)
    if module.concat_channels is not None:
        shapes["concat"] = (1, *size, module.concat_channels)
    if isinstance(module, ControlNet):
        factor = 2 ** (len(module.hint_widths) - 1)
        shapes["hint"] = (1, *(factor * n for n in size), module.hint_channels)
    x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    kinds = {"label": jnp.int32}
    cond = {name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.float32)) for name, shape in shapes.items()}
    # There, an image's embedding takes the place of a class, not of a text's.
    projected = c is not None and c.take("class_embed_type", None) == "projection"
    return Architecture(
        partial(init, module, x=x, cond=cond),
        as_apply(module),
        rename=_projected if projected else _same,
        alias=_newer,
    )


def _same(key: str) -> str:
    return key


def _projected(key: str) -> str:
    return key.replace("add_embedding.", "class_embedding.")


def _newer(key: str) -> str:
    """Attention's names before diffusers 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".{old}.", f".{new}.")
    return key
