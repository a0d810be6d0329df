"""Checkpoints of OpenAI and NVIDIA, converted to safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxdiff.interop.formats.fields import check_layers
from jaxdiff.interop.formats.files import open_tensors
from jaxdiff.interop.models.architecture import Pretrained, ShardingFn
from jaxdiff.interop.models.edm import dhariwal_unet, edm2_config, edm2_unet, edm_config, song_unet
from jaxdiff.interop.models.fill import fill
from jaxdiff.interop.models.openai import as_diffusers, openai_config, openai_unet, split_attention

__all__ = ["load_original"]

READ = {"edm": edm_config, "edm2": edm2_config, "openai": openai_config}
BUILD = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet, "EDM2UNet": edm2_unet, "UNetModel": openai_unet}


def load_original(
    path: str | Path,
    kind: str,
    config: Mapping[str, Any] | None = None,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    place: ShardingFn | None = None,
) -> Pretrained:
    """Load the state dict of a network in the layout of its authors; most of the config follows from the tensors.

    - "openai": UNetModel of improved-diffusion and guided-diffusion. The config must contain num_head_channels or
      num_heads; use_new_attention_order, if set; and concat_channels for super-resolution, where cond["concat"] is the
      resized small image. The noise input is the step, 0 to 999: `parameterize.zero_based`. The last class takes the
      place of the null class, which does not exist. With a learned variance, apply returns (F, frac), see `UNet`.
    - "edm": EDM's preconditioner with a SongUNet (DDPM++, NCSN++) or DhariwalUNet (ADM); with EDMPrecond the
      prediction is `parameterize.edm(0.5)`, and the null class is a vector of zeros.
    - "edm2": EDM2's Precond, with the same prediction; `networks.log_variance` computes its log-variance.

    Args:
        path: a safetensors file, or a directory with one.
        kind: as above.
        config: fields that do not follow from the tensors, or that replace the inferred ones; dropout, to continue
            training.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings; None: the default device.

    Returns:
        the model, with the config of a SongUNet, DhariwalUNet or EDM2UNet; for OpenAI's, if possible, with that of
        diffusers' UNet2DModel, so that `save` writes one.

    Raises:
        ValueError: the kind is unknown, a field is missing or not supported, or the tensors are not those of such a
            network; the message lists them.
    """
    if kind not in READ:
        raise ValueError(f"kind must be one of {', '.join(sorted(READ))}, got {kind!r}")
    tensors: Mapping[str, Any] = open_tensors(path)
    fields = READ[kind](tensors, config or {})
    spec = BUILD[fields["_class_name"]](fields, dtype)
    check_layers(fields, len(tensors))
    if kind == "openai":
        tensors, fields = split_attention(tensors, fields), as_diffusers(fields)
    return Pretrained(spec.apply, fill(spec, tensors, param_dtype=param_dtype, place=place), fields)
