"""Image transformers of diffusers: DiTTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.formats.fields import SIDE, SIZE
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.networks import Sinusoidal, as_apply, init
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.schema import optional

__all__ = ["dit", "flux", "sd3"]


def dit(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' DiTTransformer2DModel, with an embedding of noise level and class in every block.

    Until 2024 the class was Transformer2DModel, whose norm_type selects one of several networks. The null class is the
    last row of the table. With twice as many channels out as in, the variance is learned: apply returns (F, frac).

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    kind = config["_class_name"]
    c = Fields(config, kind, {"sample_size": SIDE, "out_channels": optional(SIZE)})
    c.ignore("norm_num_groups", "upcast_attention")  # there is no group norm, and softmax is float32 at least
    if kind != "DiTTransformer2DModel":
        c.expect("attention_type", "default", None)
        if c.get("norm_type", None) != "ada_norm_zero":
            raise ValueError(f"{kind}: of its networks DiT alone is supported, whose norm_type is 'ada_norm_zero'")
    c.expect("dropout", 0.0)
    c.expect("attention_bias", True)
    c.expect("activation_fn", "gelu-approximate")
    c.expect("norm_type", "ada_norm_zero")
    c.expect("norm_elementwise_affine", False)
    num_heads, patch, channels = c.get("num_attention_heads", 16), c.get("patch_size", 2), c.get("in_channels", 4)
    out = c.get("out_channels", None) or channels
    learned = out == 2 * channels
    module = DiT(
        width=num_heads * c.get("attention_head_dim", 72),
        layers=c.get("num_layers", 28),
        num_heads=num_heads,
        patch_size=patch,
        time=Sinusoidal(shift=1),  # the original code has shift 0
        num_classes=c.get("num_embeds_ada_norm", 1000),
        out_channels=channels if learned else out,
        learned_variance=learned,
        grid=c.get("sample_size", 32) // patch,
        eps=c.get("norm_eps", 1e-5),
        per_block_embeddings=True,
        dtype=dtype,
    )
    c.check_all_read()
    x = jax.ShapeDtypeStruct((1, patch, patch, channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return ModelSpec(lambda key: init(module, key, x, {"label": label}), as_apply(module))


def sd3(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' SD3Transformer2DModel: Stable Diffusion 3 and 3.5.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "SD3Transformer2DModel", {"sample_size": SIDE})
    num_heads, patch, channels = c.get("num_attention_heads", 18), c.get("patch_size", 2), c.get("in_channels", 16)
    width = num_heads * c.get("attention_head_dim", 64)
    if c.get("caption_projection_dim", 1152) != width:
        raise ValueError(f"SD3Transformer2DModel: caption_projection_dim must be the width {width}")
    module = MMDiT(
        width=width,
        layers=c.get("num_layers", 18),
        num_heads=num_heads,
        patch_size=patch,
        context_dim=c.get("joint_attention_dim", 4096),
        pooled_dim=c.get("pooled_projection_dim", 2048),
        out_channels=c.get("out_channels", 16),
        grid=c.get("sample_size", 128) // patch,
        pos_embed_max_size=c.get("pos_embed_max_size", 96),
        qk_norm=c.expect("qk_norm", None, "rms_norm") is not None,
        dual=c.get("dual_attention_layers", ()),
        dtype=dtype,
    )
    c.check_all_read()
    return _with_text(module, (patch, patch, channels))._replace(rename=_count_on)


def flux(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' FluxTransformer2DModel: Flux.1 dev, schnell, and those with an image as additional input.

    Input and output have the channels of the autoencoder's latents, a quarter of the config's channels.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "FluxTransformer2DModel", {"out_channels": optional(SIZE)})
    c.expect("patch_size", 1)
    num_heads, channels = c.get("num_attention_heads", 24), c.get("in_channels", 64)
    out = c.get("out_channels", None) or channels
    if channels % 4 or out % 4 or out > channels:
        raise ValueError(f"FluxTransformer2DModel: channels must be multiples of 4, got {channels} in and {out} out")
    guidance, extra = c.get("guidance_embeds", False), (channels - out) // 4
    module = Flux(
        width=num_heads * c.get("attention_head_dim", 128),
        layers=c.get("num_layers", 19),
        single_layers=c.get("num_single_layers", 38),
        num_heads=num_heads,
        axes=c.get("axes_dims_rope", (16, 56, 56)),
        context_dim=c.get("joint_attention_dim", 4096),
        pooled_dim=c.get("pooled_projection_dim", 768),
        guidance=guidance,
        concat_channels=extra or None,
        dtype=dtype,
    )
    c.check_all_read()
    more = ({"guidance": (1,)} if guidance else {}) | ({"concat": (1, 2, 2, extra)} if extra else {})
    return _with_text(module, (2, 2, out // 4), **more)


def _with_text(module: MMDiT | Flux, image: tuple[int, ...], **more: tuple[int, ...]) -> ModelSpec:
    """Initialize with an image of one token, one text token, a pooled vector, and `more` conditions."""
    shapes = {"tokens": (1, 1, module.context_dim), "vector": (1, module.pooled_dim)} | more
    cond = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return ModelSpec(lambda key: init(module, key, x, cond), as_apply(module))


def _count_on(key: str) -> str:
    """Return the index of a layer in a later run: "transformer_blocks.13+.4" is "transformer_blocks.17"."""
    return re.sub(r"^(transformer_blocks)\.(\d+)\+\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) + int(m[3])}", key)
