"""CLIP's image encoder, a vision transformer (Radford et al. 2021, arXiv:2103.00020, sec. 2.4).

Parameters are named like those of transformers' CLIPVisionModelWithProjection; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.initializers import param, table_init
from jaxdiff.networks.layers import Conv
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import LayerNorm, dense, scan_layers
from jaxdiff.resize import bicubic
from jaxdiff.text.clip import Layer
from jaxdiff.text.parts import Embedding, Encoded, scaled

__all__ = ["CLIPImage", "clip_pixels"]

# Mean and standard deviation of red, green and blue in [0, 1], over the pictures that CLIP was trained on.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIPImage(nn.Module):
    """CLIP's image encoder.

    Attributes:
        size: edge of the pictures in pixels, a multiple of patch_size.
        patch_size: edge of a patch in pixels.
        width: features of a patch.
        layers: number of layers.
        num_heads: of the attention; divides the width.
        mlp_dim: inner width of the feed-forward networks.
        projection: features of the pooled vector.
        act: the feed-forward networks' activation, "quick_gelu" (OpenAI's models) or "gelu" (OpenCLIP's).
        eps: of the norms.
        remat: what the backward pass recomputes in each layer: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32.
    """

    size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    num_heads: int = 16
    mlp_dim: int = 5120
    projection: int = 1024
    act: str = "gelu"
    eps: float = 1e-5
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array, *, layer: int = -1) -> Encoded:
        """Encode pictures.

        Args:
            pixels: [B, size, size, C], as `clip_pixels` makes them.
            layer: which layer's output to return: -1 is the last, -2 the one before.

        Returns:
            the layer's output without a norm [B, 1 + (size / patch_size)^2, width], of the class token and the patches,
            and the pooled vector [B, projection], of the last layer's class token.

        Raises:
            ValueError: the pictures have another size, patches don't tile them, heads don't divide the width, or the
                layer does not exist.
        """
        if pixels.ndim != 4 or pixels.shape[1:3] != (self.size, self.size):
            raise ValueError(f"pixels must be [B, {self.size}, {self.size}, C], got {list(pixels.shape)}")
        if self.size % self.patch_size or self.width % self.num_heads:
            raise ValueError(
                f"patches must tile pictures of {self.size} pixels and heads divide the width {self.width}, got "
                f"patches of {self.patch_size} and {self.num_heads} heads"
            )
        if not -self.layers <= layer <= -1:
            raise ValueError(f"layer counts from the end, -{self.layers}..-1, got {layer}")
        root = "vision_model.embeddings"
        patches = Conv(
            self.width, self.patch_size, self.patch_size, (0, 0), bias=False, dtype=self.dtype,
            name=f"{root}.patch_embedding",
        )(pixels).reshape(len(pixels), -1, self.width)  # fmt: skip
        token = param(self, f"{root}.class_embedding", scaled(table_init, 0.02), (self.width,))
        token = jnp.broadcast_to(token.astype(self.dtype), (len(pixels), 1, self.width))
        x = jnp.concatenate([token, patches], axis=1)
        places = jnp.arange(x.shape[1])[None]
        x = x + Embedding(x.shape[1], self.width, self.dtype, name=f"{root}.position_embedding")(places)
        x = LayerNorm(self.eps, name="vision_model.pre_layrnorm")(x)  # the reference's spelling

        stack = scan_layers(Layer, self.layers, remat=self.remat)
        options = self.num_heads, self.mlp_dim, self.act, self.eps, self.dtype
        run = stack(*options, causal=False, name="vision_model.encoder.layers.*")
        (x, hidden, _), _ = run((x, x, jnp.zeros((), jnp.int32)), None, self.layers + layer)

        pooled = LayerNorm(self.eps, name="vision_model.post_layernorm")(x[:, 0])
        return Encoded(hidden, dense(self.projection, self.dtype, "visual_projection", bias=False)(pooled))


def clip_pixels(images: Array, size: int) -> Array:
    """Bring pictures to what CLIP's image encoder takes: the shorter side resized, the centre cropped, normalized.

    As transformers' CLIPImageProcessor, without its rounding to 8 bits.

    Args:
        images: [B, H, W, 3] in [0, 1].
        size: edge of the result.

    Returns:
        [B, size, size, 3], of about mean 0 and variance 1.

    Raises:
        ValueError: images are not [B, H, W, 3].
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [B, H, W, 3], got {list(images.shape)}")
    sides = images.shape[1:3]
    height, width = (size * side // min(sides) for side in sides)
    if sides != (height, width):
        images = jnp.clip(bicubic(images, (height, width)), 0, 1)
    top, left = (height - size) // 2, (width - size) // 2
    crop = images[:, top : top + size, left : left + size]
    mean, std = (np.asarray(numbers, crop.dtype).reshape(1, 1, 1, 3) for numbers in (MEAN, STD))
    return (crop - mean) / std
