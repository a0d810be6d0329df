"""Classes of other projects, by their name in config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxdiff.interop.models.adapters import t2i_adapter
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.autoencoders import autoencoder_kl, vq_model
from jaxdiff.interop.models.conditional_unets import controlnet, unet_2d_condition
from jaxdiff.interop.models.edm import dhariwal_unet, edm2_unet, song_unet
from jaxdiff.interop.models.encoders import bert, clip_image, clip_text, t5_encoder
from jaxdiff.interop.models.transformers import dit, flux, sd3
from jaxdiff.interop.models.unet_1d import unet_1d
from jaxdiff.interop.models.unets import unet_2d
from jaxdiff.interop.models.uvit import uvit
from jaxdiff.interop.models.video_unets import unet_3d_condition
from jaxdiff.schema import look_up

__all__ = ["CLASSES", "architecture"]

# (fields of the config, dtype of the computation) -> the model.
CLASSES: dict[str, Callable[[Mapping[str, Any], Any], ModelSpec]] = {
    "AutoencoderKL": autoencoder_kl,
    "BertModel": bert,
    "CLIPTextModel": partial(clip_text, projection=False),
    "CLIPTextModelWithProjection": partial(clip_text, projection=True),
    "CLIPVisionModelWithProjection": clip_image,
    "ControlNetModel": controlnet,
    "DhariwalUNet": dhariwal_unet,
    "DiTTransformer2DModel": dit,
    "EDM2UNet": edm2_unet,
    "FluxTransformer2DModel": flux,
    "SD3Transformer2DModel": sd3,
    "SongUNet": song_unet,
    "T2IAdapter": t2i_adapter,
    "T5EncoderModel": t5_encoder,
    "Transformer2DModel": dit,
    "UNet1DModel": unet_1d,
    "UNet2DConditionModel": unet_2d_condition,
    "UNet2DModel": unet_2d,
    "UNet3DConditionModel": unet_3d_condition,
    "UViT": uvit,
    "VQModel": vq_model,
}


def architecture(config: Mapping[str, Any], dtype: Any = jnp.float32) -> ModelSpec:
    """Build the model that a config describes.

    Args:
        config: the fields, with the class in `_class_name`.
        dtype: dtype of the computation.

    Raises:
        ValueError: the class is unknown, or a field is not supported.
    """
    return look_up(CLASSES, config.get("_class_name"), "class")(config, dtype)
