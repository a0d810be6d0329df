"""Single-file checkpoints of Stable Diffusion 1, 2, XL, 3 and Flux, with one or all models and the authors' names.

The models of a file follow from the prefixes of the tensors' names, and their sizes from the shapes. Everything else is
as in the published models; the tokenizers' vocabularies are not in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.interop.formats.shapes import side
from jaxdiff.interop.models.single_encoders import clip_part, open_clip_part, t5_part
from jaxdiff.interop.models.single_networks import flux_part, sd3_part, unet_part, vae_part

__all__ = ["Part", "Single", "read_single"]

Tensors = Mapping[str, Any]
Config = dict[str, Any]


class Part(NamedTuple):
    """A model in a file.

    Attributes:
        kind: its class.
        read: overrides of the config -> (config, tensors), in diffusers' or transformers' names.
    """

    kind: str
    read: Callable[[Mapping[str, Any]], tuple[Config, dict[str, Any]]]


class Single(NamedTuple):
    """The contents of a file.

    Attributes:
        fields: the fields of its model_index.json; empty if there is no denoising network.
        scheduler: the scheduler's config of the published models.
        scheduler_overrides: fields of the scheduler's config that follow from the file.
        parts: the models by the names of their directories.
    """

    fields: Config
    scheduler: Config
    scheduler_overrides: Config
    parts: dict[str, Part]


class _Family(NamedTuple):
    pipeline: str
    scheduler: Config
    latents: Config  # fields that do not follow from an autoencoder's tensors
    encoders: dict[str, tuple[str, str, Callable[..., Any]]]  # by directory: prefix of names, class, reader
    network: Mapping[str, Any] = MappingProxyType({})  # fields that do not follow from the network's tensors


NETWORK = "model.diffusion_model."
VAE = "first_stage_model.", "vae."
CLIP, PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
}  # fmt: skip
PNDM = BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
DDIM = BETAS | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
EULER = BETAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}  # fmt: skip
OPENAI, PLAIN = partial(clip_part, act="quick_gelu"), partial(open_clip_part, projection=False)
LARGE = partial(open_clip_part, projection=True)

SD1 = _Family(
    "StableDiffusionPipeline", PNDM, {"scaling_factor": 0.18215},
    {"text_encoder": ("cond_stage_model.transformer.", CLIP, OPENAI)},
)  # fmt: skip
SD2 = SD1._replace(
    scheduler=DDIM | {"prediction_type": "v_prediction"},
    encoders={"text_encoder": ("cond_stage_model.model.", CLIP, PLAIN)},
)
XL = _Family(
    "StableDiffusionXLPipeline", EULER, {"scaling_factor": 0.13025},
    {
        "text_encoder": ("conditioner.embedders.0.transformer.", CLIP, OPENAI),
        "text_encoder_2": ("conditioner.embedders.1.model.", PROJECTED, LARGE),
    },
)  # fmt: skip
REFINER = XL._replace(
    pipeline="StableDiffusionXLImg2ImgPipeline",
    encoders={"text_encoder_2": ("conditioner.embedders.0.model.", PROJECTED, LARGE)},
)
SD3 = _Family(
    "StableDiffusion3Pipeline", FLOW, {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    {
        "text_encoder": (
            "text_encoders.clip_l.transformer.", PROJECTED, partial(OPENAI, projection=True, identity=True)
        ),
        "text_encoder_2": (
            "text_encoders.clip_g.transformer.", PROJECTED, partial(clip_part, act="gelu", projection=True)
        ),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", T5, t5_part),
    },
)  # fmt: skip
FLUX = _Family(
    "FluxPipeline", FLOW | DYNAMIC, {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    {
        "text_encoder": ("text_encoders.clip_l.transformer.", CLIP, OPENAI),
        "text_encoder_2": ("text_encoders.t5xxl.transformer.", T5, t5_part),
    },
)  # fmt: skip


def read_single(tensors: Tensors) -> Single | None:
    """Find the models in a file of tensors; return None if the names are not those of these models' authors.

    For Stable Diffusion 2 the scheduler is that of the model of 768 pixels, with v-prediction, unless the training step
    in the file or the channels of the U-Net are those of a model of 512 pixels. Finetuned models with a tensor "v_pred"
    predict v; those with "ztsnr" have zero terminal SNR.

    Args:
        tensors: tensors by name.

    Raises:
        ValueError: the network has another noise schedule.
    """
    network = _inside(tensors, NETWORK) or tensors
    if "double_blocks.0.img_attn.qkv.weight" in network:
        family, name, kind, read = _flux(network), "transformer", "FluxTransformer2DModel", flux_part
    elif "joint_blocks.0.x_block.attn.qkv.weight" in network:
        family, name, kind, read = SD3, "transformer", "SD3Transformer2DModel", sd3_part
    elif "middle_block.1.transformer_blocks.0.attn2.to_k.weight" in network:
        family, name, kind, read = _stable_diffusion(tensors, network), "unet", "UNet2DConditionModel", unet_part
    else:
        vae = _vae(tensors)
        return None if vae is None else Single({}, {}, {}, {"vae": Part("AutoencoderKL", partial(vae_part, vae))})
    parts = {name: Part(kind, lambda overrides: read(network, {**family.network, **overrides}))}
    if (vae := _vae(tensors)) is not None:
        parts["vae"] = Part("AutoencoderKL", lambda overrides: vae_part(vae, family.latents | dict(overrides)))
    for encoder, (prefix, class_name, reader) in family.encoders.items():
        if encoder_tensors := _inside(tensors, prefix):
            parts[encoder] = Part(class_name, partial(reader, encoder_tensors))
    overrides: Config = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    overrides |= {"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {}
    fields = {"_class_name": family.pipeline, "force_zeros_for_empty_prompt": family.pipeline == XL.pipeline}
    return Single(fields | {part: [None, "held"] for part in parts}, family.scheduler, overrides, parts)


def _flux(network: Tensors) -> _Family:
    if "guidance_in.in_layer.weight" in network:
        return FLUX
    return FLUX._replace(scheduler=FLOW | {"shift": 1.0})  # schnell


def _stable_diffusion(tensors: Tensors, network: Tensors) -> _Family:
    other = [name for name in ("edm_mean", "edm_vpred.sigma_max") if name in tensors]
    if other:
        raise ValueError(f"a file with {other[0]} is of another noise schedule; its diffusers directory is read")
    cross = side(network, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1)
    if "label_emb.0.0.weight" in network:
        if cross == 1024:
            return SD2._replace(pipeline="StableUnCLIPPipeline")
        family = REFINER if _inside(tensors, "conditioner.embedders.0.model.") else XL
    elif cross == 1024 or _inside(tensors, "cond_stage_model.model."):
        step = int(np.asarray(tensors["global_step"][()]).reshape(())) if "global_step" in tensors else None
        # The model of 512 pixels, and its variants for inpainting and depth, predict the noise.
        first = "input_blocks.0.0.weight"
        small = step == 875000 or (first in network and side(network, first, 1) != 4)
        family = SD2._replace(scheduler=PNDM, network={"sample_size": 64}) if small else SD2
    else:
        family = SD1
    return family


def _vae(tensors: Tensors) -> Tensors | None:
    for prefix in VAE:
        if vae := _inside(tensors, prefix):
            return vae
    return tensors if "decoder.mid.block_1.conv1.weight" in tensors else None


def _inside(tensors: Tensors, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
