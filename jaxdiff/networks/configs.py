"""Published networks as functions of nothing but what a user may want to change."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.embed import Sinusoidal
from jaxdiff.networks.layers import wide
from jaxdiff.networks.transformer2d import Transformers
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


def stable_diffusion_1(**changes) -> UNet:
    """The U-Net of Stable Diffusion 1 (Rombach et al. 2022): 859,520,964 parameters on latents of 4 channels."""
    config: dict[str, Any] = {
        "widths": (320, 640, 1280, 1280),
        "attention": (0, 1, 2),
        "transformer": Transformers(depth=(1,) * 4, heads=(8,) * 4),
        "token_dim": 768,
    }
    return UNet(**config | changes)


def stable_diffusion_2(**changes) -> UNet:
    """The U-Net of Stable Diffusion 2: 865,910,724 parameters on latents of 4 channels."""
    heads = Transformers(depth=(1,) * 4, heads=(5, 10, 20, 20), linear=True)
    return stable_diffusion_1(**{"transformer": heads, "token_dim": 1024} | changes)


def stable_diffusion_xl(**changes) -> UNet:
    """The base U-Net of Stable Diffusion XL (Podell et al. 2023): 2,567,463,684 parameters on latents of 4 channels.

    Its cond["vector"] comes from `sdxl_vector`.
    """
    config: dict[str, Any] = {
        "widths": (320, 640, 1280),
        "attention": (1, 2),
        "transformer": Transformers(depth=(1, 2, 10), heads=(5, 10, 20), linear=True),
        "token_dim": 2048,
        "vector_dim": 2816,
    }
    return UNet(**config | changes)


def sdxl_vector(pooled: Array, numbers: Array, features: int = 256) -> Array:
    """Makes the vector that Stable Diffusion XL's U-Nets see (Podell et al. 2023, sec. 2.2).

    Args:
        pooled: [B, D], the pooled text embedding: D is 1280.
        numbers: [B, N], of the base: height and width of the original image, top and left of the crop, height and
            width aimed at, in pixels; of the refiner: the first four and an aesthetic score.
        features: of each number's embedding.

    Returns:
        [B, D + N features], in float32 at least.
    """
    dtype = wide(pooled.dtype)
    embedded = Sinusoidal()(numbers.astype(dtype).reshape(-1), features)
    return jnp.concatenate([pooled.astype(dtype), embedded.reshape(len(pooled), -1)], axis=-1)
