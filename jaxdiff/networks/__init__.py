"""Networks: functions F(x, noise, cond) with parameters, in Flax Linen."""

from jaxdiff.networks.apply import as_apply, init
from jaxdiff.networks.configs import adm_imagenet64, ddpm_cifar10, ddpmpp_cifar10, edm2, ncsnpp_cifar10
from jaxdiff.networks.dit import DiT, dit_b_4, dit_s_2, dit_xl_2, sit_xl_2
from jaxdiff.networks.edm2 import EDM2UNet, log_variance
from jaxdiff.networks.embed import Fourier, Sinusoidal
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.magnitude import force_weight_norm
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.song_unet import DhariwalUNet, SongUNet
from jaxdiff.networks.unet import UNet

__all__ = [
    "MLP",
    "DhariwalUNet",
    "DiT",
    "EDM2UNet",
    "Flux",
    "Fourier",
    "MMDiT",
    "Sinusoidal",
    "SongUNet",
    "UNet",
    "adm_imagenet64",
    "as_apply",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "dit_b_4",
    "dit_s_2",
    "dit_xl_2",
    "edm2",
    "force_weight_norm",
    "init",
    "log_variance",
    "ncsnpp_cifar10",
    "sit_xl_2",
]
