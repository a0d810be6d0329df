"""T5's encoder (Raffel et al. 2020, arXiv:1910.10683, sec. 2.1), and that of T5 v1.1 with gated activations.

Parameters are named like those of transformers' T5EncoderModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.attention import attend, split_heads
from jaxdiff.networks.initializers import kernel_init
from jaxdiff.networks.layers import Dense, at_least_float32
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import RMSNorm, dense, scan_layers
from jaxdiff.text.parts import Embedding, Encoded, check_tokens, scaled


def buckets(length: int, count: int, max_distance: int) -> np.ndarray:
    """Return the bucket of the distance from each query to each key.

    Half of the buckets are for keys after the query. In each half, the first buckets hold one distance each, from 0 on;
    the sizes of the others grow geometrically up to `max_distance`, and the last bucket holds all larger distances.

    Args:
        length: of the text, in tokens.
        count: number of buckets, at least 4.
        max_distance: all distances of at least this many tokens share a bucket.

    Returns:
        int32[length, length], by query and key.
    """
    half = count // 2
    exact = half // 2
    offset = np.arange(length)[None] - np.arange(length)[:, None]
    distance = np.abs(offset)
    # In float32, like the reference: in float64 a distance at a bucket's border may fall into the other bucket.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    near = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (near + half * (offset > 0)).astype(np.int32)


class Block(nn.Module):
    """Self-attention without biases and scaling, and a feed-forward network; see `T5Encoder` for the attributes."""

    num_heads: int
    head_dim: int
    mlp_dim: int
    gated: bool
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, bias: Array) -> tuple[Array, None]:
        """Map x[B, L, D], in float32 at least; bias[1, H, L, L] is added to the logits."""
        width, inner = x.shape[-1], self.num_heads * self.head_dim

        h = RMSNorm(self.eps, name="layer.0.layer_norm")(x).astype(self.dtype)
        # The queries' initial kernel contains the scale.
        draw = scaled(kernel_init, self.head_dim**-0.5)
        q = Dense(inner, False, self.dtype, kernel_init=draw, name="layer.0.SelfAttention.q")(h)
        k, v = (self._dense(inner, f"layer.0.SelfAttention.{name}")(h) for name in "kv")
        q, k, v = (split_heads(a, self.num_heads) for a in (q, k, v))
        h = attend(q, k, v, mask=mask, bias=bias, scale=1.0).reshape(*x.shape[:-1], inner)
        x = x + self._dense(width, "layer.0.SelfAttention.o")(h).astype(x.dtype)

        h = RMSNorm(self.eps, name="layer.1.layer_norm")(x).astype(self.dtype)
        return x + self._feed_forward(h, width).astype(x.dtype), None

    def _dense(self, features: int, name: str) -> Dense:
        return dense(features, self.dtype, name, bias=False)

    def _feed_forward(self, h: Array, width: int) -> Array:
        # The XXL model's values exceed float16 after the product (not bfloat16, which has float32's range).
        dtype = jnp.float32 if self.dtype == jnp.float16 else self.dtype
        root = "layer.1.DenseReluDense"
        if self.gated:
            gate = jax.nn.gelu(self._dense(self.mlp_dim, f"{root}.wi_0")(h), approximate=True)
            h = gate.astype(dtype) * self._dense(self.mlp_dim, f"{root}.wi_1")(h).astype(dtype)
        else:
            h = jax.nn.relu(self._dense(self.mlp_dim, f"{root}.wi")(h))
        return dense(width, dtype, f"{root}.wo", bias=False)(h)


class T5Encoder(nn.Module):
    """T5's encoder; the defaults are those of T5 v1.1 XXL, which Stable Diffusion 3 and Flux use.

    Half precision is safe, since the residual stream is in float32.

    Attributes:
        vocab_size: number of tokens.
        width: features of a token.
        layers: number of blocks.
        num_heads: of the attention.
        head_dim: features of a head.
        mlp_dim: inner width of the feed-forward networks.
        gated: gated GELU in the feed-forward networks (T5 v1.1; Shazeer 2020, arXiv:2002.05202); False: ReLU.
        buckets: number of buckets of relative positions.
        max_distance: all distances of at least this many tokens share a bucket.
        eps: of the norms.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 32128
    width: int = 4096
    layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_dim: int = 10240
    gated: bool = True
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
        """Encode texts.

        Args:
            ids: int[B, L].
            mask: bool[B, L], True for visible tokens; None: all are visible.

        Returns:
            the last block's output after the norm, [B, L, width]; no pooled vector.

        Raises:
            ValueError: ids or mask is misshapen, or buckets and max_distance do not fit together.
        """
        check_tokens(ids, mask)
        if not 0 < self.buckets // 4 < self.max_distance:
            raise ValueError(f"a quarter of the buckets, got {self.buckets}, must be in 1..{self.max_distance - 1}")
        # One table for all blocks; the reference stores it in the first block.
        table = Embedding(
            self.buckets,
            self.num_heads,
            at_least_float32(self.dtype),
            std=1.0,
            name="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        )
        bias = table(jnp.asarray(buckets(ids.shape[1], self.buckets, self.max_distance))).transpose(2, 0, 1)[None]

        x = Embedding(self.vocab_size, self.width, at_least_float32(self.dtype), std=1.0, name="shared")(ids)
        stack = scan_layers(Block, self.layers, remat=self.remat)
        options = self.num_heads, self.head_dim, self.mlp_dim, self.gated, self.eps, self.dtype
        x, _ = stack(*options, name="encoder.block.*")(x, mask, bias)
        return Encoded(RMSNorm(self.eps, name="encoder.final_layer_norm")(x).astype(self.dtype))
