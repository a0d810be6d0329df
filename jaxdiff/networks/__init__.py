"""Networks: functions F(x, noise, cond) with parameters, in Flax Linen."""

from jaxdiff.networks.apply import as_apply, init
from jaxdiff.networks.configs import adm_imagenet64, ddpm_cifar10, wide_cifar10
from jaxdiff.networks.dit import DiT, dit_b_4, dit_s_2, dit_xl_2, sit_xl_2
from jaxdiff.networks.embed import Fourier, Sinusoidal
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.unet import UNet

__all__ = [
    "MLP",
    "DiT",
    "Flux",
    "Fourier",
    "MMDiT",
    "Sinusoidal",
    "UNet",
    "adm_imagenet64",
    "as_apply",
    "ddpm_cifar10",
    "dit_b_4",
    "dit_s_2",
    "dit_xl_2",
    "init",
    "sit_xl_2",
    "wide_cifar10",
]
