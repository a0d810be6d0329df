"""diffusers' UNet1DModel, as used by Dance Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.unets import check_blocks
from jaxdiff.networks import DanceUNet, as_apply, init

__all__ = ["unet_1d"]

FIRST, PLAIN, ATTENTION = (
    tuple(kind.format(way) for way in ("Down", "Up")) for kind in ("{}Block1DNoSkip", "{}Block1D", "Attn{}Block1D")
)
NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def unet_1d(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' UNet1DModel of Dance Diffusion; x is [B, L, C].

    Variants with residual temporal blocks, for planning and value functions, are not supported.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet1DModel")
    # These have no effect without residual temporal blocks.
    c.ignore("sample_size", "sample_rate", "_class_name", "freq_shift", "act_fn", "norm_num_groups", "layers_per_block")
    c.ignore("downsample_each_block")
    c.expect("time_embedding_type", "fourier")
    c.expect("use_timestep_embedding", False)
    c.expect("mid_block_type", "UNetMidBlock1D")
    c.expect("out_block_type", None)
    widths = c.get("block_out_channels", (32, 32, 64))
    down = c.get("down_block_types", (FIRST[0], PLAIN[0], ATTENTION[0]))
    up = c.get("up_block_types", (ATTENTION[1], PLAIN[1], FIRST[1]))[::-1]
    attention = tuple(i for i, name in enumerate(down) if name == ATTENTION[0])
    for way, (field, types) in enumerate((("down_block_types", down), ("up_block_types", up))):
        if types[:1] != FIRST[way : way + 1]:
            raise ValueError(f"UNet1DModel: {field} must have {FIRST[way]} at the largest size, got {types}")
        rest, kinds = tuple(i - 1 for i in attention), (ATTENTION[way], PLAIN[way])
        check_blocks(field, types[1:], kinds, levels=rest, count=len(widths) - 1)
    features = c.get("time_embedding_dim", None) or 2 * widths[0]
    if c.get("extra_in_channels", 0) != features:
        raise ValueError(f"UNet1DModel: extra_in_channels must be the {features} features of the noise level")
    module = DanceUNet(
        widths,
        attention,
        features,
        c.get("flip_sin_to_cos", True),
        c.get("out_channels", 2),
        dtype,
    )
    x = jax.ShapeDtypeStruct((1, 2 ** len(widths) * 4, c.get("in_channels", 2)), jnp.float32)
    c.check_all_read()
    return ModelSpec(partial(init, module, x=x), as_apply(module), rename=_rename)


def _rename(key: str) -> str:
    for ours, theirs in NAMES.items():
        key = key.replace(ours, theirs)
    return key
