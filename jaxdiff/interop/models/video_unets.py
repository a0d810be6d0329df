"""Text-to-video U-Nets of diffusers: UNet3DConditionModel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.unets import channels, check_blocks, names
from jaxdiff.networks import Sinusoidal, TextVideoUNet, TransformerConfig, as_apply, init
from jaxdiff.types import Params

__all__ = ["unet_3d_condition"]

CROSS, PLAIN = ("CrossAttnDownBlock3D", "CrossAttnUpBlock3D"), ("DownBlock3D", "UpBlock3D")


def unet_3d_condition(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' UNet3DConditionModel: ModelScope's text-to-video network and Zeroscope; x is [B, T, H, W, C].

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet3DConditionModel")
    c.ignore("sample_size", "_class_name")
    c.expect("act_fn", "silu", "swish")
    c.expect("num_attention_heads", None)
    widths, size = c.get("block_out_channels", (320, 640, 1280, 1280)), c.get("attention_head_dim", 64)
    down = names(c, "down_block_types", (*(CROSS[0],) * 3, PLAIN[0]))
    attention = tuple(i for i, name in enumerate(down) if name == CROSS[0])
    check_blocks("down_block_types", down, (CROSS[0], PLAIN[0]), levels=attention, count=len(widths))
    up = names(c, "up_block_types", (PLAIN[1], *(CROSS[1],) * 3))
    check_blocks("up_block_types", up, (CROSS[1], PLAIN[1]), levels=attention, count=len(widths))
    in_channels, sizes = channels(c, 4)
    # Unlike in UNet2DConditionModel, attention_head_dim is the size of a head.
    num_heads = tuple(max(1, width // size) for width in widths)
    module = TextVideoUNet(
        widths=widths,
        num_blocks=c.get("layers_per_block", 2),
        attention=attention,
        transformer=TransformerConfig(depth=(1,) * len(widths), num_heads=num_heads, linear=True),
        temporal_head_dim=size,
        down_pad=(c.expect("downsample_padding", 1, 0), 1),
        mid_divide=c.get("mid_block_scale_factor", 1),
        groups=c.get("norm_num_groups", 32),
        eps=c.get("norm_eps", 1e-5),
        time=Sinusoidal(),
        context_dim=c.get("cross_attention_dim", 1024),
        guidance_dim=c.get("time_cond_proj_dim", None),
        **sizes,
        dtype=dtype,
    )
    c.check_all_read()
    shapes: dict[str, tuple[int, ...]] = {"tokens": (1, 1, module.context_dim or 1)}
    edge = (1, 1) + (2 ** (len(widths) - 1),) * 2
    shapes |= {} if module.guidance_dim is None else {"guidance": (1,)}
    shapes |= {} if module.concat_channels is None else {"concat": (*edge, module.concat_channels)}
    cond = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((*edge, in_channels), jnp.float32)

    def apply(params: Params, x: jax.Array, noise: jax.Array, cond: Any = None, **options: Any) -> Any:
        return as_apply(module.clone(frames=x.shape[1]))(params, x, noise, cond, **options)

    return ModelSpec(partial(init, module.clone(frames=1), x=x, cond=cond), apply)
