"""Networks: functions F(x, noise, cond) with parameters, in Flax Linen."""

from jaxdiff.networks.apply import as_apply, init
from jaxdiff.networks.configs import adm_imagenet64, ddpm_cifar10, wide_cifar10
from jaxdiff.networks.embed import Fourier, Sinusoidal
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.unet import UNet

__all__ = ["MLP", "Fourier", "Sinusoidal", "UNet", "adm_imagenet64", "as_apply", "ddpm_cifar10", "init", "wide_cifar10"]
