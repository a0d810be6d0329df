"""Published networks as functions of nothing but what a user may want to change."""

from typing import Any

from jaxdiff.networks.embed import Sinusoidal
from jaxdiff.networks.unet import UNet


def ddpm_cifar10(**changes) -> UNet:
    """The CIFAR-10 network of Ho et al. 2020, app. B: 35,746,307 parameters at 32x32x3."""
    config: dict[str, Any] = {
        "widths": (128, 256, 256, 256),
        "blocks": 2,
        "attention": (1,),
        "down_pad": (0, 1),
        "dropout": 0.1,
        "eps": 1e-6,
        "time": Sinusoidal(cos_first=False, shift=1),
    }
    return UNet(**config | changes)


def wide_cifar10(**changes) -> UNet:
    """A CIFAR-10 network of the class of DDPM++ (Song et al. 2021, app. H): 62,427,395 parameters at 32x32x3.

    It has the widths, depth, attention resolution, resampling blocks and dropout of the network that Karras et al.
    2022 train on CIFAR-10, but not its narrower stem, its attention once per level on the way up, and its scaled
    residual sums, with which that network has 55.7 million parameters.
    """
    config: dict[str, Any] = {
        "widths": (256, 256, 256),
        "blocks": 4,
        "attention": (1,),
        "resample": "resblock",
        "dropout": 0.13,
        "eps": 1e-6,
        "time": Sinusoidal(cos_first=False, shift=1),
    }
    return UNet(**config | changes)


def adm_imagenet64(**changes) -> UNet:
    """The class-conditional ImageNet-64 network of Dhariwal & Nichol 2021, app. I, with a null class.

    Without the null class's 768 numbers it has the published 295,904,454 parameters.
    """
    config: dict[str, Any] = {
        "widths": (192, 384, 576, 768),
        "blocks": 3,
        "attention": (1, 2, 3),
        "head_dim": 64,
        "scale_shift": True,
        "resample": "resblock",
        "dropout": 0.1,
        "num_classes": 1000,
        "learned_variance": True,
    }
    return UNet(**config | changes)
