"""IP-Adapters: an image as a prompt, by a second cross-attention (Ye et al. 2023, arXiv:2308.06721, sec. 3.2).

Where the transformers of a U-Net attend to the text, they also attend to an image: with the same queries, to keys and
values of their own,

    attention(q, text) + lam attention(q, image).

A `UNet` with image_ranks has these weights, of one adapter or of several, whose attentions are added;
cond["image_prompt"] are each image's tokens, cond["image_scale"] is each lam. The tokens are computed once per picture:
from the embedding of an image encoder by an `ImageProjection`, or from its patches by a `Resampler` (the authors'
"plus"). FaceID projects the embedding of a face by a `FaceProjection`, or with the patches of the face's picture by a
`FacePlusProjection` (the authors' "FaceID Plus" and "Plus v2"), and also changes the projections of all attentions by
weights of low rank (Hu et al. 2021, arXiv:2106.09685), which are on where lam is not 0, as in its training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import attend, split_heads
from jaxdiff.networks.initializers import param, table_init
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.networks.tokens import LayerNorm, dense, scan_layers

__all__ = ["FacePlusProjection", "FaceProjection", "ImageProjection", "Resampler", "image_prompted"]

ImageScale = float | Array | Callable[[Array], float | Array]


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


class FaceProjection(nn.Module):
    """Tokens of the embedding of a face.

    Attributes:
        count: number of tokens.
        width: of a token, that of the text's tokens.
        features: inner width.
        dtype: type of the computation.
    """

    count: int = 4
    width: int = 768
    features: int = 1024
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        """Map embeddings [B, D] to tokens [B, count, width]."""
        return _face_tokens(self, embedding)


def _face_tokens(module: FaceProjection | FacePlusProjection, embedding: Array) -> Array:
    """Map a face's embeddings [B, D] to tokens [B, count, width], by layers of the calling module."""
    h = nn.gelu(dense(module.features, module.dtype, "proj.0")(embedding.astype(module.dtype)), approximate=False)
    tokens = dense(module.count * module.width, module.dtype, "proj.2")(h)
    return LayerNorm(name="norm")(tokens.reshape(len(embedding), module.count, module.width))


class ResamplerLayer(nn.Module):
    """Attention of queries to patches and to themselves, and a feed-forward network; each adds to the queries.

    Attributes: see `Resampler`.
    """

    num_heads: int
    head_dim: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, patches: Array) -> tuple[Array, None]:
        """Map queries x[B, L, D], which look at patches[B, N, D]."""
        inner = self.num_heads * self.head_dim
        linear = partial(dense, dtype=self.dtype, bias=False)
        h = LayerNorm(name="0.norm2")(x)
        seen = jnp.concatenate([LayerNorm(name="0.norm1")(patches), h], axis=1)
        q, kv = linear(inner, name="0.to_q")(h), linear(2 * inner, name="0.to_kv")(seen)
        q, k, v = (split_heads(a, self.num_heads) for a in (q, *jnp.split(kv, 2, axis=-1)))
        x = x + linear(x.shape[-1], name="0.to_out")(attend(q, k, v).reshape(*x.shape[:2], inner))
        h = linear(self.features, name="1.1")(LayerNorm(name="1.0")(x))
        return x + linear(x.shape[-1], name="1.3")(nn.gelu(h, approximate=False)), None


class Resampler(nn.Module):
    """Tokens of an image's patches, by learned queries (Alayrac et al. 2022, arXiv:2204.14198, sec. 2.1).

    Attributes:
        count: number of tokens.
        width: of a token, that of the text's tokens.
        inner_width: of the queries.
        layers: number of layers.
        num_heads: of the attention.
        head_dim: features of a head.
        features: inner width of the feed-forward networks.
        dtype: type of the computation.
    """

    count: int = 16
    width: int = 768
    inner_width: int = 768
    layers: int = 4
    num_heads: int = 12
    head_dim: int = 64
    features: int = 3072
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: Array, queries: Array | None = None) -> Array:
        """Map patches [B, N, D], the image encoder's layer before the last, to tokens [B, count, width].

        Queries [B, count, inner_width], if given, replace the learned ones.
        """
        patches = dense(self.inner_width, self.dtype, "proj_in")(patches)
        if queries is None:
            queries = param(self, "latents", table_init, (1, self.count, self.inner_width)).astype(self.dtype)
        x = jnp.broadcast_to(queries, (len(patches), *queries.shape[1:]))
        stack = scan_layers(ResamplerLayer, self.layers)
        x, _ = stack(self.num_heads, self.head_dim, self.features, self.dtype, name="layers.*")(x, patches)
        return LayerNorm(name="norm_out")(dense(self.width, self.dtype, "proj_out")(x))


class FacePlusProjection(nn.Module):
    """Tokens of the embedding of a face and of the patches of its picture, of which the first are the queries.

    Attributes:
        count: number of tokens.
        width: of a token, that of the text's tokens.
        features: inner width of the embedding's projection.
        layers: of the resampler.
        num_heads: of its attention.
        head_dim: features of a head.
        resampler_features: inner width of its feed-forward networks.
        dtype: type of the computation.
    """

    count: int = 4
    width: int = 768
    features: int = 1024
    layers: int = 4
    num_heads: int = 12
    head_dim: int = 64
    resampler_features: int = 3072
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array, patches: Array, shortcut: float | Array | None = None) -> Array:
        """Return the tokens.

        Args:
            embedding: of a face, [B, D].
            patches: of a picture of it, [B, N, D'], the image encoder's layer before the last.
            shortcut: None: of Plus; or of Plus v2 the weight of the resampler's tokens, which are added to those of the
                embedding: a number, 1 in its training, or [B]. 0 is the face alone.

        Returns:
            tokens [B, count, width].
        """
        tokens = _face_tokens(self, embedding)
        resampler = Resampler(
            self.count, self.width, self.width, self.layers, self.num_heads, self.head_dim, self.resampler_features,
            self.dtype, name="perceiver_resampler",
        )  # fmt: skip
        resampled = resampler(patches, tokens)
        if shortcut is None:
            return resampled
        return tokens + jnp.asarray(shortcut, self.dtype).reshape(-1, 1, 1) * resampled


def image_prompted(unet: Callable[..., Any], scale: ImageScale | Sequence[ImageScale] = 1.0) -> Callable[..., Any]:
    """Return a U-Net with image prompts at a scale.

    Args:
        unet: its apply.
        scale: lam of each image, or one for all: a number or [B], or a function of the network's noise input, noise[B]
            -> a number or [B], which follows the noise level; 0 is off.

    Returns:
        apply(params, x, noise, cond, *, key=None), of cond without "image_scale".

    Raises:
        ValueError: when apply is called, another number of scales, or another shape of one.
    """

    def apply(params, x, noise, cond, *, key=None):
        def lam(each: ImageScale) -> Array:
            value = jnp.asarray(each(noise) if callable(each) else each, at_least_float32(x.dtype))
            if value.shape not in ((), noise.shape):
                raise ValueError(f"scale must be one number or {len(noise)}, one per example, got shape {value.shape}")
            return jnp.broadcast_to(value, noise.shape)

        count = len(cond["image_prompt"])
        each = list(scale) if isinstance(scale, Sequence) else [scale] * count
        if len(each) != count:
            raise ValueError(f"{count} images take one scale, or as many, got {len(each)}")
        return unet(params, x, noise, {**cond, "image_scale": tuple(map(lam, each))}, key=key)

    return apply
