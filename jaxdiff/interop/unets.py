"""U-Nets of diffusers: UNet2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.architecture import Architecture, Fields
from jaxdiff.networks import Sinusoidal, UNet, as_apply, init

__all__ = ["unet_2d"]

DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
RESNET = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"


def unet_2d(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' UNet2DModel: DDPM, ADM and plain U-Nets.

    The network's null class is the last of the num_class_embeds classes. Where in_channels exceeds out_channels, the
    rest of the input is cond["concat"].

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
    if mid_attention and scale_shift:
        c.only("attn_norm_num_groups", groups)  # without it, that attention has no norm
    else:
        c.only("attn_norm_num_groups", None, groups)
    attention, resample = _levels(c)
    classes = c.take("num_class_embeds", None)
    given, out = c.take("in_channels", 3), c.take("out_channels", 3)
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
        num_classes=None if classes is None else classes - 1,
        concat_channels=given - out if given > out else None,
        out_channels=out,
        dtype=dtype,
    )
    c.done()
    return _built(module, min(given, out))


def _levels(c: Fields) -> tuple[tuple[int, ...], str]:
    """The levels with attention, and how the network resamples."""
    attn = "AttnDownBlock2D", "AttnUpBlock2D"
    down = c.take("down_block_types", (DOWN[0], *(attn[0],) * 3))
    up = tuple(reversed(c.take("up_block_types", (*(attn[1],) * 3, UP[0]))))
    # What the blocks with attention do; the others' names say it.
    own = c.only("downsample_type", "conv", "resnet"), c.only("upsample_type", "conv", "resnet")
    for types, known in (down, (*DOWN, RESNET[0])), (up, (*UP, RESNET[1])):
        unknown = sorted(set(types) - set(known))
        if unknown:
            raise ValueError(f"UNet2DModel: blocks must be of {', '.join(known)}, got {', '.join(unknown)}")
    sides = [tuple(i for i, name in enumerate(types) if name in attn) for types in (down, up)]
    if sides[0] != sides[1] or len(down) != len(up):
        raise ValueError(f"UNet2DModel: the way up must mirror the way down, got {down} and, reversed, {up}")
    pairs = [*((name, own[0]) for name in down[:-1]), *((name, own[1]) for name in up[1:])]
    kinds = {kind if name in attn else "resnet" if name in RESNET else "conv" for name, kind in pairs}
    if len(kinds) > 1:
        raise ValueError("UNet2DModel: all levels must resample the same way, by convolutions or by residual blocks")
    return sides[0], {"conv": "conv", "resnet": "resblock"}[kinds.pop() if kinds else "conv"]


def _time(c: Fields) -> Sinusoidal:
    return Sinusoidal(cos_first=c.take("flip_sin_to_cos", True), shift=c.take("freq_shift", 0))


def _built(module: UNet, channels: int) -> Architecture:
    size = (2 ** (len(module.widths) - 1),) * 2
    x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    cond = {}
    if module.num_classes is not None:
        cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if module.concat_channels is not None:
        cond["concat"] = jax.ShapeDtypeStruct((1, *size, module.concat_channels), jnp.float32)
    return Architecture(partial(init, module, x=x, cond=cond), as_apply(module), alias=_newer)


def _newer(key: str) -> str:
    """Attention's names before diffusers 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".{old}.", f".{new}.")
    return key
