"""U-ViT with the names of the reference code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.networks import as_apply, init
from jaxdiff.networks.uvit import UViT

__all__ = ["uvit"]


def uvit(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """U-ViT of github.com/baofff/U-ViT, with the state dict in a safetensors file.

    The null class is the last of the num_classes classes. With clip_dim, the network is the text-to-image variant.

    Args:
        config: the reference's arguments (`config.nnet` in its configurations), and "_class_name": "UViT".
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UViT")
    c.ignore("_class_name", "name", "use_checkpoint")
    c.expect("qkv_bias", False)
    c.expect("qk_scale", None)
    c.expect("mlp_time_embed", False)
    c.expect("skip", True)
    ratio = c.get("mlp_ratio", 4)
    if ratio != int(ratio):
        raise ValueError(f"UViT: mlp_ratio must be whole, got {ratio}")
    classes, clip = c.get("num_classes", -1), c.get("clip_dim", None)
    module = UViT(
        width=c.get("embed_dim", 768),
        layers=c.get("depth", 12) // 2 * 2,
        num_heads=c.get("num_heads", 12),
        patch_size=c.get("patch_size", 16),
        mlp_ratio=int(ratio),
        num_classes=classes - 1 if classes > 0 else None,
        context_dim=clip,
        conv=c.get("conv", True),
        dtype=dtype,
    )
    size, channels, tokens = c.get("img_size", 224), c.get("in_chans", 3), c.get("num_clip_token", 77)
    c.check_all_read()
    cond = {}
    if classes > 0:
        cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if clip is not None:
        cond["tokens"] = jax.ShapeDtypeStruct((1, tokens, clip), jnp.float32)
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return ModelSpec(partial(init, module, x=x, cond=cond), as_apply(module), weights="model")
