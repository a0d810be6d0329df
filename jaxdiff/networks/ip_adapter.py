"""IP-Adapters: an image as a prompt, by a second cross-attention (Ye et al. 2023, arXiv:2308.06721, sec. 3.2).

Where the transformers of a U-Net attend to the text, they also attend to an image: with the same queries, to keys and
values of their own,

    attention(q, text) + lam attention(q, image).

A `UNet` with image_prompt has these weights; cond["image_prompt"] are the image's tokens, cond["image_scale"] is lam.
The tokens are computed once per picture, from the embedding of an image encoder, by an `ImageProjection`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.layers import at_least_float32
from jaxdiff.networks.tokens import LayerNorm, dense

__all__ = ["ImageProjection", "image_prompted"]


class ImageProjection(nn.Module):
    """Tokens of an image embedding.

    Attributes:
        count: number of tokens.
        width: of a token, that of the text's tokens.
        dtype: type of the computation.
    """

    count: int = 4
    width: int = 768
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        """Map embeddings [B, D] to tokens [B, count, width]."""
        tokens = dense(self.count * self.width, self.dtype, "proj")(embedding.astype(self.dtype))
        return LayerNorm(name="norm")(tokens.reshape(len(embedding), self.count, self.width))


def image_prompted(unet: Callable[..., Any], scale: float | Array | Callable[[Array], float | Array] = 1.0) -> Callable:
    """Return a U-Net with image_prompt at a scale.

    Args:
        unet: its apply.
        scale: lam: a number or [B], or a function of the network's noise input, noise[B] -> a number or [B], which
            follows the noise level; 0 is off.

    Returns:
        apply(params, x, noise, cond, *, key=None), of cond without "image_scale".

    Raises:
        ValueError: when apply is called, another shape of the scale.
    """

    def apply(params, x, noise, cond, *, key=None):
        lam = jnp.asarray(scale(noise) if callable(scale) else scale, at_least_float32(x.dtype))
        if lam.shape not in ((), noise.shape):
            raise ValueError(f"scale must be one number or {len(noise)}, one per example, got shape {lam.shape}")
        return unet(params, x, noise, {**cond, "image_scale": jnp.broadcast_to(lam, noise.shape)}, key=key)

    return apply
