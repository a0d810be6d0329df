"""Checkpoints as OpenAI and NVIDIA published them, once their tensors lie in a safetensors file."""

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
    """Load the state dict of a network in its authors' layout; most of its config follows from the tensors.

    - "openai": improved-diffusion's and guided-diffusion's UNetModel. The config has to give num_head_channels or
      num_heads, and use_new_attention_order where that is set; concat_channels for super-resolution, whose small image,
      resized, is cond["concat"]. The noise is the step, 0 to 999: `parameterize.zero_based`. The null class is the last
      class, since there is none. A learned variance comes as (F, frac), see `UNet`.
    - "edm": a preconditioner with a SongUNet (DDPM++, NCSN++) or DhariwalUNet (ADM) of EDM; with EDMPrecond the
      prediction is `parameterize.edm(0.5)`, and the null class is a vector of zeros.
    - "edm2": EDM2's Precond, of the same prediction; `networks.log_variance` is its uncertainty.

    Args:
        path: a safetensors file, or a directory with one.
        kind: as above.
        config: fields of the network that leave no trace in its tensors, or that replace what was read off; dropout,
            where it is to be trained further.
        dtype: of the computation.
        param_dtype: of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings; None: the default device.

    Returns:
        The model; its config is of SongUNet, DhariwalUNet, EDM2UNet, or, for OpenAI's, of diffusers' UNet2DModel, as
        which `save` writes it, if that class can be the network.

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
