"""Autoencoders of diffusers: AutoencoderKL and VQModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdiff.autoencoders import KLAutoencoder, VQAutoencoder, init, kl_codec, vq_codec
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.unets import check_blocks

__all__ = ["autoencoder_kl", "vq_model"]

ATTENTION = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"

# diffusers' names of the attention's layers until the end of 2022, still used by Stable Diffusion 1's files.
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def autoencoder_kl(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' AutoencoderKL: Stable Diffusion 1, 2, XL, 3 and Flux.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Returns:
        the network, whose `apply` is a `Codec`.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "AutoencoderKL")
    module = KLAutoencoder(
        **_layout(c),
        latent_channels=c.get("latent_channels", 4),
        use_quant_conv=c.get("use_quant_conv", True),
        use_post_quant_conv=c.get("use_post_quant_conv", True),
        dtype=dtype,
    )
    scale, shift = _affine(c)
    c.check_all_read()
    codec = kl_codec(module, scale=scale, shift=shift)
    return ModelSpec(lambda key: init(module, key), codec, alias=_alias)


def vq_model(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' VQModel: unconditional latent diffusion models.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Returns:
        the network, whose `apply` is a `VQCodec`.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "VQModel")
    latent = c.get("latent_channels", 3)
    dim = c.get("vq_embed_dim", None)
    module = VQAutoencoder(
        **_layout(c),
        latent_channels=latent,
        codes=c.get("num_vq_embeddings", 256),
        code_dim=latent if dim is None else dim,
        dtype=dtype,
    )
    c.expect("norm_type", "group")
    c.ignore("lookup_from_codebook")  # whether the decoder's input is indices, see `VQCodec.lookup`
    codec = vq_codec(module, scale=c.get("scaling_factor", 0.18215))
    c.check_all_read()
    return ModelSpec(lambda key: init(module, key), codec, alias=_alias)


def _layout(c: Fields) -> dict[str, Any]:
    widths = c.get("block_out_channels", (64,))
    down = c.get("down_block_types", ("DownEncoderBlock2D",) * len(widths))
    attention = tuple(i for i, name in enumerate(down) if name == ATTENTION[0])
    check_blocks("down_block_types", down, (ATTENTION[0], "DownEncoderBlock2D"), levels=attention, count=len(widths))
    up = c.get("up_block_types", ("UpDecoderBlock2D",) * len(widths))[::-1]
    check_blocks("up_block_types", up, (ATTENTION[1], "UpDecoderBlock2D"), levels=attention, count=len(widths))
    c.expect("act_fn", "silu", "swish")
    c.ignore("_class_name", "sample_size", "force_upcast")
    return {
        "in_channels": c.get("in_channels", 3),
        "out_channels": c.get("out_channels", 3),
        "widths": widths,
        "num_blocks": c.get("layers_per_block", 1),
        "attention": attention,
        "mid_attention": c.get("mid_block_add_attention", True),
        "groups": c.get("norm_num_groups", 32),
    }


def _affine(c: Fields) -> tuple[Any, Any]:
    """Return the scale and shift of (z - shift) * scale; Playground 2.5 has means and stds per channel."""
    scale, shift = c.get("scaling_factor", 0.18215), c.get("shift_factor", None)
    means, stds = c.get("latents_mean", None), c.get("latents_std", None)
    if means is None and stds is None:
        return scale, 0.0 if shift is None else shift
    if means is None or stds is None or shift:
        raise ValueError(
            f"AutoencoderKL: latents_mean and latents_std go together and exclude shift_factor, got {means}, {stds} "
            f"and {shift}"
        )
    return tuple(scale / std for std in stds), means


def _alias(key: str) -> str | None:
    if ".attentions." not in key:
        return key
    return ".".join(OLD.get(segment, segment) for segment in key.split("."))
