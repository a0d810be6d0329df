"""Pictures at other sizes, and blurred: on the devices, within a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["bicubic", "blur"]


def bicubic(x: Array, size: tuple[int, int], *, antialias: bool = True) -> Array:
    """Resize pictures by bicubic interpolation with a = -1/2 (Keys 1981), as Pillow's BICUBIC, without its rounding.

    Pixels are squares whose centres lie at half-integers; weights beyond the border are left out, and the others
    scaled to a sum of 1.

    Args:
        x: [B, H, W, C], floating-point.
        size: (height, width) of the result.
        antialias: widen the kernel where the picture shrinks, as Pillow does always; False takes every result from 4 x
            4 pixels.

    Returns:
        [B, *size, C]; values may lie beyond those of x, as the kernel has negative weights.

    Raises:
        ValueError: x is no batch of pictures, or a size is below 1.
    """
    _check(x)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1, got {size}")
    # By example: the number of examples may be symbolic, in an exported program.
    return jax.vmap(lambda image: jax.image.resize(image, (*size, image.shape[-1]), "cubic", antialias=antialias))(x)


def blur(x: Array, sigma: Array, *, radius: int = 1) -> Array:
    """Blur pictures with a Gaussian that ends at `radius` pixels; the border's pixels are repeated beyond it.

    Args:
        x: [B, H, W, C], floating-point.
        sigma: standard deviation in pixels, [B]; 0 leaves a picture as it is.
        radius: in pixels.

    Returns:
        like x.

    Raises:
        ValueError: x is no batch of pictures, or sigma is not one number for each.
    """
    _check(x)
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma must be one number for each of {x.shape[0]} pictures, got the shape {sigma.shape}")
    offsets = jnp.arange(-radius, radius + 1, dtype=x.dtype)[None]
    width = sigma.astype(x.dtype)[:, None]
    gaussian = jnp.exp(-0.5 * jnp.square(offsets / jnp.where(width > 0, width, 1)))
    weights = jnp.where(width > 0, gaussian, jnp.where(offsets == 0, 1, 0).astype(x.dtype))
    weights = (weights / jnp.sum(weights, axis=1, keepdims=True))[:, :, None, None, None]
    for axis in (1, 2):
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded, length = jnp.pad(x, pad, mode="edge"), x.shape[axis]
        shifted = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(2 * radius + 1))
        x = sum(weights[:, k] * part for k, part in enumerate(shifted))  # type: ignore[assignment]
    return x


def _check(x: Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"pictures are floating-point [B, H, W, C], got {x.dtype}{list(x.shape)}")
