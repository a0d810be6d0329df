"""Networks: functions F(x, noise, cond) with parameters, in Flax Linen."""

from jaxdiff.networks.adapter import T2IAdapter, adapted, adapter_of, add_features
from jaxdiff.networks.apply import as_apply, as_features, init
from jaxdiff.networks.attention_control import control_attention, prompt_to_prompt, shared_attention
from jaxdiff.networks.caching import Cached, as_cached
from jaxdiff.networks.configs import (
    adm_imagenet64,
    ddpm_cifar10,
    ddpmpp_cifar10,
    edm2,
    ncsnpp_cifar10,
    sdxl_vector,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from jaxdiff.networks.controlnet import ControlNet, add_controls, control_of, controlled, copy_encoder
from jaxdiff.networks.critic import ConvCritic, FeatureCritic, MLPCritic
from jaxdiff.networks.dance import DanceUNet
from jaxdiff.networks.dit import DiT, dit_b_4, dit_s_2, dit_xl_2, sit_xl_2
from jaxdiff.networks.edm2 import EDM2UNet, log_variance
from jaxdiff.networks.embed import Fourier, LearnedTimes, Sinusoidal, StoredFourier
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.ip_adapter import FacePlusProjection, FaceProjection, ImageProjection, Resampler, image_prompted
from jaxdiff.networks.joint_unet import JointUNet
from jaxdiff.networks.magnitude import force_weight_norm
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.patch_critic import PatchCritic
from jaxdiff.networks.score_unet import ScoreUNet
from jaxdiff.networks.song_unet import DhariwalUNet, SongUNet
from jaxdiff.networks.start import start_from
from jaxdiff.networks.text_video import TextVideoUNet
from jaxdiff.networks.token_merging import merged_tokens
from jaxdiff.networks.transformer2d import TransformerConfig
from jaxdiff.networks.unet import UNet
from jaxdiff.networks.uvit import UViT, uvit_h_2_imagenet256, uvit_s_2_cifar10
from jaxdiff.networks.video import VideoDiT, VideoUNet, inflate, per_frame

__all__ = [
    "MLP",
    "Cached",
    "ControlNet",
    "ConvCritic",
    "DanceUNet",
    "DhariwalUNet",
    "DiT",
    "EDM2UNet",
    "FacePlusProjection",
    "FaceProjection",
    "FeatureCritic",
    "Flux",
    "Fourier",
    "ImageProjection",
    "JointUNet",
    "LearnedTimes",
    "MLPCritic",
    "MMDiT",
    "PatchCritic",
    "Resampler",
    "ScoreUNet",
    "Sinusoidal",
    "SongUNet",
    "StoredFourier",
    "T2IAdapter",
    "TextVideoUNet",
    "TransformerConfig",
    "UNet",
    "UViT",
    "VideoDiT",
    "VideoUNet",
    "adapted",
    "adapter_of",
    "add_controls",
    "add_features",
    "adm_imagenet64",
    "as_apply",
    "as_cached",
    "as_features",
    "control_attention",
    "control_of",
    "controlled",
    "copy_encoder",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "dit_b_4",
    "dit_s_2",
    "dit_xl_2",
    "edm2",
    "force_weight_norm",
    "image_prompted",
    "inflate",
    "init",
    "log_variance",
    "merged_tokens",
    "ncsnpp_cifar10",
    "per_frame",
    "prompt_to_prompt",
    "sdxl_vector",
    "shared_attention",
    "sit_xl_2",
    "stable_diffusion_1",
    "stable_diffusion_2",
    "stable_diffusion_3",
    "stable_diffusion_xl",
    "start_from",
    "uvit_h_2_imagenet256",
    "uvit_s_2_cifar10",
]
