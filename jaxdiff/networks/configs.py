"""Published networks; keyword arguments change their attributes."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.edm2 import EDM2UNet
from jaxdiff.networks.embed import Sinusoidal
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.song_unet import SongUNet
from jaxdiff.networks.transformer2d import TransformerConfig
from jaxdiff.networks.unet import UNet


def ddpm_cifar10(**changes) -> UNet:
    """The CIFAR-10 network of Ho et al. 2020, app. B: 35,746,307 parameters at 32x32x3."""
    config: dict[str, Any] = {
        "widths": (128, 256, 256, 256),
        "num_blocks": 2,
        "attention": (1,),
        "down_pad": (0, 1),
        "dropout": 0.1,
        "eps": 1e-6,
        "time": Sinusoidal(cos_first=False, shift=1),
    }
    return UNet(**config | changes)


def ddpmpp_cifar10(**changes) -> SongUNet:
    """DDPM++ as Karras et al. 2022 (arXiv:2206.00364, app. F.3) train it on CIFAR-10.

    With the condition of their augmentation, augment_dim=9, it has the published 55.7 million parameters.
    """
    config: dict[str, Any] = {
        "widths": (256, 256, 256),
        "model_channels": 128,
        "num_blocks": 4,
        "attention": (16,),
        "dropout": 0.13,
    }
    return SongUNet(**config | changes)


def ncsnpp_cifar10(**changes) -> SongUNet:
    """NCSN++ as Karras et al. 2022 (arXiv:2206.00364, app. F.3) train it on CIFAR-10.

    With the condition of their augmentation, augment_dim=9, it has 56.4 million parameters.
    """
    config: dict[str, Any] = {
        "embedding": "fourier",
        "noise_mult": 2,
        "encoder": "residual",
        "resample_filter": (1.0, 3.0, 3.0, 1.0),
    }
    return ddpmpp_cifar10(**config | changes)


EDM2_WIDTHS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


def edm2(size: str, **changes) -> EDM2UNet:
    """EDM2's networks for the latents of ImageNet-512, 64x64x4 (Karras et al. 2024, arXiv:2312.02696, tables 2 and 4).

    Args:
        size: "xs", "s", "m", "l", "xl" or "xxl", of 125, 280, 498, 777, 1119 and 1523 million parameters.
        **changes: attributes of `EDM2UNet`. The networks for ImageNet-64 differ in these only.

    Raises:
        ValueError: there is no such size.
    """
    if size not in EDM2_WIDTHS:
        raise ValueError(f"size must be one of {', '.join(EDM2_WIDTHS)}, got {size!r}")
    config: dict[str, Any] = {
        "widths": tuple(EDM2_WIDTHS[size] * mult for mult in (1, 2, 3, 4)),
        "dropout": 0.0 if size in ("xs", "s") else 0.1,
        "num_classes": 1000,
        "log_variance": 128,
    }
    return EDM2UNet(**config | changes)


def adm_imagenet64(**changes) -> UNet:
    """The class-conditional ImageNet-64 network of Dhariwal and Nichol 2021, app. I, with a null class.

    Without the null class's 768 numbers it has the published 295,904,454 parameters.
    """
    config: dict[str, Any] = {
        "widths": (192, 384, 576, 768),
        "num_blocks": 3,
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
        "transformer": TransformerConfig(depth=(1,) * 4, num_heads=(8,) * 4),
        "context_dim": 768,
    }
    return UNet(**config | changes)


def stable_diffusion_2(**changes) -> UNet:
    """The U-Net of Stable Diffusion 2: 865,910,724 parameters on latents of 4 channels."""
    num_heads = TransformerConfig(depth=(1,) * 4, num_heads=(5, 10, 20, 20), linear=True)
    return stable_diffusion_1(**{"transformer": num_heads, "context_dim": 1024} | changes)


def stable_diffusion_xl(**changes) -> UNet:
    """The base U-Net of Stable Diffusion XL (Podell et al. 2023): 2,567,463,684 parameters on latents of 4 channels.

    `sdxl_vector` computes its cond["vector"].
    """
    config: dict[str, Any] = {
        "widths": (320, 640, 1280),
        "attention": (1, 2),
        "transformer": TransformerConfig(depth=(1, 2, 10), num_heads=(5, 10, 20), linear=True),
        "context_dim": 2048,
        "pooled_dim": 2816,
    }
    return UNet(**config | changes)


def stable_diffusion_3(depth: int, **changes) -> MMDiT:
    """An MMDiT whose blocks, heads and width grow together (Esser et al. 2024, arXiv:2403.03206, sec. 5.3).

    Args:
        depth: number of blocks, number of heads, and width / 64. 24 is Stable Diffusion 3 medium (2 billion
            parameters); 38 is the paper's largest and, with qk_norm, Stable Diffusion 3.5 large (8 billion).
        **changes: attributes of `MMDiT`.
    """
    config: dict[str, Any] = {"width": 64 * depth, "layers": depth, "num_heads": depth, "pos_embed_max_size": 192}
    return MMDiT(**config | changes)


def sdxl_vector(pooled: Array, numbers: Array, features: int = 256) -> Array:
    """Compute cond["vector"] of Stable Diffusion XL's U-Nets (Podell et al. 2023, sec. 2.2).

    Args:
        pooled: [B, D], the pooled text embedding: D is 1280.
        numbers: [B, N]. For the base: height and width of the original image, top and left of the crop, target height
            and width, in pixels. For the refiner: the first four, and an aesthetic score.
        features: of each number's embedding.

    Returns:
        [B, D + N features], in float32 at least.
    """
    dtype = at_least_float32(pooled.dtype)
    embedded = Sinusoidal()(numbers.astype(dtype).reshape(-1), features)
    return jnp.concatenate([pooled.astype(dtype), embedded.reshape(len(pooled), -1)], axis=-1)
