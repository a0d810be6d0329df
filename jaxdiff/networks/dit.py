"""The diffusion transformer, DiT (Peebles and Xie 2022, arXiv:2212.09748), which is also SiT's network.

Parameters are named like those of diffusers' DiTTransformer2DModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes, split_output
from jaxdiff.networks.attention import attend
from jaxdiff.networks.embed import ClassEmbedding, EmbeddingMLP, Sinusoidal, embed_guidance
from jaxdiff.networks.layers import Conv, at_least_float32, depth_to_space
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import (
    FeedForward,
    check_patches,
    dense,
    grid_table,
    modulated_norm,
    modulations,
    qkv,
    scan_layers,
)
from jaxdiff.sharding import constrain_tokens

FEATURES = 256  # sines and cosines of the noise level


class _BlockInputs(NamedTuple):
    """Inputs of all blocks: the embedding or, if that is None, the inputs of each block's own embedding."""

    features: Array
    label: Any
    emb: Any
    after: Any  # the embedding of the level that a step ends at, or None


class Embedding(nn.Module):
    """Sum of the embeddings of the noise level and the class.

    Attributes:
        width: features of the embedding.
        num_classes: number of classes; None: no labels.
        dtype: type of the network's computation.
    """

    width: int
    num_classes: int | None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Array, label: Any) -> Array:
        """Map features[B, F] and label[B] to [B, width], float32 at least."""
        emb = EmbeddingMLP(self.width, self.dtype, name="timestep_embedder")(features)
        if self.num_classes is None:
            return emb
        table = ClassEmbedding(self.num_classes, self.width, self.dtype, name="class_embedder.embedding_table")
        return emb + table(label)


class Block(nn.Module):
    """Attention and feed-forward, both modulated and gated by the condition (adaLN-Zero, sec. 3.2).

    Attributes:
        num_heads: of the attention; divides the width.
        mlp_ratio: width of the feed-forward's inner layer over that of the tokens.
        eps: of the norm before the feed-forward.
        own_embedding: the block has its own embedding of noise level and class.
        num_classes: see `Embedding`, where `own_embedding` is set.
        dtype: type of the computation.
    """

    num_heads: int
    mlp_ratio: int = 4
    eps: float = 1e-6
    own_embedding: bool = False
    num_classes: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, inputs: _BlockInputs) -> tuple[Array, Array | None]:
        """Map tokens x[B, N, D] to the same shape; also return the block's own embedding [B, D]."""
        x, width, emb = constrain_tokens(x), x.shape[-1], inputs.emb
        if self.own_embedding:
            emb = Embedding(width, self.num_classes, self.dtype, name="norm1.emb")(inputs.features, inputs.label)
            emb = emb if inputs.after is None else emb + inputs.after
        condition = nn.silu(emb).astype(self.dtype)
        shift, scale, gate, shift2, scale2, gate2 = modulations(condition, 6, self.dtype, "norm1.linear")

        h = modulated_norm(x, shift, scale)
        q, k, v = qkv(h, [f"attn1.to_{a}" for a in "qkv"], num_heads=self.num_heads, dtype=self.dtype)
        x = x + gate * dense(width, self.dtype, "attn1.to_out.0")(attend(q, k, v).reshape(h.shape))
        h = modulated_norm(x, shift2, scale2, self.eps)
        x = x + gate2 * FeedForward(self.mlp_ratio * width, dtype=self.dtype, name="ff")(h)
        return x, (emb if self.own_embedding else None)


class DiT(nn.Module):
    """Transformer over the patches of an image (Peebles and Xie 2022, sec. 3), conditioned by adaLN-Zero.

    Attributes:
        width: of the tokens.
        layers: blocks.
        num_heads: of the attention; divides the width.
        patch_size: edge of a patch.
        mlp_ratio: width of the feed-forward's inner layer over that of the tokens.
        time: embedding of the noise level.
        num_classes: classes of cond["label"]; None: off.
        guidance_dim: features of cond["guidance"] float[B], the scale of a distilled guidance, which are added to those
            of the noise; None: off. They start at zero, so that weights without them keep their function.
        next_noise: cond["next_noise"] is float[B], the noise input of the level at which a step ends, for few-step
            models (`jaxdiff.distill`). Its embedding starts at zero, so that weights without it keep their function.
        out_channels: channels of the output; None: as many as x has.
        learned_variance: return (F, frac), as `UNet` does.
        grid: patches along an edge of the training images; the positions of images of other sizes are scaled to the
            same range. None: patches are at 0, 1, 2, ...
        eps: of the norm before the feed-forward.
        per_block_embeddings: each block has its own embedding of noise level and class, as in diffusers' checkpoints,
            which initialize them as copies of one; False: all blocks share one, as in the paper.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        unroll: blocks per turn of the loop over them.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, embedding, norms and
            output float32 at least.
    """

    width: int = 384
    layers: int = 12
    num_heads: int = 6
    patch_size: int = 2
    mlp_ratio: int = 4
    time: Sinusoidal = Sinusoidal()
    num_classes: int | None = None
    guidance_dim: int | None = None
    next_noise: bool = False
    out_channels: int | None = None
    learned_variance: bool = False
    grid: int | None = None
    eps: float = 1e-6
    per_block_embeddings: bool = False
    remat: Remat = "dots"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array | tuple[Array, Array]:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, H, W, C], H and W multiples of patch_size.
            noise: float[B], the network's noise input.
            cond: "label" int[B] where num_classes is set (num_classes is the null class); "guidance" and
                "next_noise" float[B] where these are set.
            train: no effect; there is no dropout.

        Returns:
            [B, H, W, out_channels], or a pair of them with learned_variance; zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or patches do not tile the image.
        """
        cond = self._check(x, noise, cond)
        inputs = self._embed(noise, cond)
        h = Conv(self.width, self.patch_size, self.patch_size, (0, 0), dtype=self.dtype, name="pos_embed.proj")(x)
        rows, columns = h.shape[1:3]
        h = h + grid_table(self._places(rows), self._places(columns), self.width).astype(self.dtype)[None]

        h, embs = self.blocks(h.reshape(x.shape[0], -1, self.width), inputs)
        # As in the reference, the embedding of the first block modulates the last layer.
        emb = embs[0] if self.per_block_embeddings else inputs.emb
        shift, scale = modulations(nn.silu(emb).astype(self.dtype), 2, self.dtype, "proj_out_1")
        return self._output(modulated_norm(h, shift, scale).reshape(-1, rows, columns, self.width), x.shape[-1])

    def blocks(self, h: Array, inputs: _BlockInputs) -> Any:
        """Map tokens [B, N, D] to (tokens, embeddings) by all blocks; `networks.as_cached` keeps their change."""
        return self._stack()(h, inputs)

    def _stack(self, block: type[Block] = Block, **fields: Any) -> nn.Module:
        """Return the blocks as one scanned module."""
        return scan_layers(block, self.layers, remat=self.remat, unroll=self.unroll)(
            self.num_heads,
            self.mlp_ratio,
            self.eps,
            self.per_block_embeddings,
            self.num_classes,
            self.dtype,
            **fields,
            name="transformer_blocks.*",
        )

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> _BlockInputs:
        high, label, after = at_least_float32(self.dtype), cond.get("label"), None
        features = self.time(noise.astype(high), FEATURES)
        if self.guidance_dim is not None:
            scale = cond["guidance"].astype(high)
            features = features + embed_guidance(scale, self.guidance_dim, FEATURES, "guidance_embedding")
        if self.next_noise:
            ahead = self.time(cond["next_noise"].astype(high), FEATURES)
            after = EmbeddingMLP(self.width, self.dtype, zero=True, name="next_time_embedding")(ahead)
        if self.per_block_embeddings:
            return _BlockInputs(features, label, None, after)
        emb = Embedding(self.width, self.num_classes, self.dtype, name="emb")(features, label)
        return _BlockInputs(features, label, emb if after is None else emb + after, after)

    def _places(self, count: int) -> np.ndarray:
        return np.arange(count) * (1 if self.grid is None else self.grid / count)

    def _output(self, h: Array, channels: int) -> Array | tuple[Array, Array]:
        channels = channels if self.out_channels is None else self.out_channels
        features = channels * (2 if self.learned_variance else 1) * self.patch_size**2
        h = dense(features, self.dtype, "proj_out_2", zero=True)(h).astype(at_least_float32(self.dtype))
        return split_output(depth_to_space(h, self.patch_size), self.learned_variance)

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        check_patches(x, self.patch_size)
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, got {self.width} and {self.num_heads} heads")
        shapes = cond_shapes(
            x,
            cond,
            num_classes=self.num_classes,
            guidance=self.guidance_dim is not None,
            next_noise=self.next_noise,
        )
        return check_cond(x, noise, cond, shapes)


def dit_s_2(**changes) -> DiT:
    """DiT-S/2 of Peebles and Xie 2022 (arXiv:2212.09748), table 1, for ImageNet latents."""
    return _imagenet(384, 12, 6, 2, changes)


def dit_b_4(**changes) -> DiT:
    """DiT-B/4 of Peebles and Xie 2022 (arXiv:2212.09748), table 1, for ImageNet latents."""
    return _imagenet(768, 12, 12, 4, changes)


def dit_xl_2(**changes) -> DiT:
    """DiT-XL/2 of Peebles and Xie 2022 (arXiv:2212.09748), table 1, for ImageNet latents.

    It has the published 675,129,632 parameters, less the table of positions, 256 x 1152, which is computed.
    """
    return _imagenet(1152, 28, 16, 2, changes)


def sit_xl_2(**changes) -> DiT:
    """SiT-XL/2 of Ma et al. 2024 (arXiv:2401.08740), sec. 3: DiT-XL/2 without a learned variance.

    It predicts the velocity of `processes.Flow`; its noise input is the time in [0, 1]. The published checkpoints have
    a second half of the last layer for a learned variance, which is not used.
    """
    return dit_xl_2(**{"learned_variance": False} | changes)


def _imagenet(width: int, layers: int, num_heads: int, patch: int, changes: Mapping[str, Any]) -> DiT:
    config: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "num_heads": num_heads,
        "patch_size": patch,
        "num_classes": 1000,
        "learned_variance": True,
    }
    return DiT(**config | dict(changes))
