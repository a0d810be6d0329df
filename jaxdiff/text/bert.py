"""BERT (Devlin et al. 2019, arXiv:1810.04805), and its sentence embeddings (Reimers and Gurevych 2019).

Parameters are named like those of transformers' BertModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import attend
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import LayerNorm, dense, qkv, scan_layers
from jaxdiff.text.parts import Embedding, Encoded, EncoderLayer, activation, check_tokens


class Layer(EncoderLayer):
    """Self-attention and a feed-forward network, each followed by a norm."""

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, None]:
        """Map [B, L, D] to the same shape."""
        width = x.shape[-1]
        names = [f"attention.self.{name}" for name in ("query", "key", "value")]
        q, k, v = qkv(x, names, num_heads=self.num_heads, dtype=self.dtype)
        h = dense(width, self.dtype, "attention.output.dense")(attend(q, k, v, mask=mask).reshape(x.shape))
        x = LayerNorm(self.eps, name="attention.output.LayerNorm")(x + h)
        h = activation(self.act)(dense(self.mlp_dim, self.dtype, "intermediate.dense")(x))
        h = dense(width, self.dtype, "output.dense")(h)
        return LayerNorm(self.eps, name="output.LayerNorm")(x + h), None


class Bert(nn.Module):
    """BERT's encoder; the defaults are MiniLM-L6's (Wang et al. 2020, arXiv:2002.10957).

    Attributes:
        vocab_size: number of tokens.
        width: features of a token.
        layers: number of layers.
        num_heads: of the attention; divides the width.
        mlp_dim: inner width of the feed-forward networks.
        max_length: length of the longest text, in tokens.
        num_segments: number of segments, e.g. 2 for pairs of sentences.
        pooler: pool the first token's vector with a linear layer and tanh.
        act: the feed-forward networks' activation, "gelu", "gelu_new" or "relu".
        eps: of the norms.
        remat: what the backward pass recomputes in each layer: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 30522
    width: int = 384
    layers: int = 6
    num_heads: int = 12
    mlp_dim: int = 1536
    max_length: int = 512
    num_segments: int = 2
    pooler: bool = True
    act: str = "gelu"
    eps: float = 1e-12
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None, *, segments: Array | None = None) -> Encoded:
        """Encode texts.

        Args:
            ids: int[B, L].
            mask: bool[B, L], True for visible tokens; None: all are visible.
            segments: int[B, L], the segment of each token; None: 0 for all.

        Returns:
            the last layer's output [B, L, width], and the pooled vector [B, width] or None.

        Raises:
            ValueError: ids, mask or segments is misshapen, or there are too many tokens.
        """
        check_tokens(ids, mask, self.max_length)
        segments = jnp.zeros_like(ids) if segments is None else segments
        if segments.shape != ids.shape:
            raise ValueError(f"segments must have the shape of ids, {ids.shape}, got {segments.shape}")
        if self.width % self.num_heads:
            raise ValueError(f"heads must divide the width {self.width}, got {self.num_heads}")

        def look_up(rows, name, ids):
            return Embedding(rows, self.width, self.dtype, name=f"embeddings.{name}_embeddings")(ids)

        x = look_up(self.vocab_size, "word", ids) + look_up(self.num_segments, "token_type", segments)
        x = x + look_up(self.max_length, "position", jnp.arange(ids.shape[1])[None])
        x = LayerNorm(self.eps, name="embeddings.LayerNorm")(x)
        stack = scan_layers(Layer, self.layers, remat=self.remat)
        options = self.num_heads, self.mlp_dim, self.act, self.eps, self.dtype
        x, _ = stack(*options, name="encoder.layer.*")(x, mask)
        if not self.pooler:
            return Encoded(x)
        return Encoded(x, jnp.tanh(dense(self.width, self.dtype, "pooler.dense")(x[:, 0])))


def sentence_embedding(hidden: Array, mask: Array) -> Array:
    """Return a unit vector for each text: the normalized mean of its tokens (Reimers and Gurevych 2019, sec. 3).

    Args:
        hidden: [B, L, D], the last layer's output.
        mask: bool[B, L], True for the tokens of the text.

    Returns:
        [B, D], float32 at least; inner products are cosine similarities. Zeros for a text without tokens.
    """
    visible = mask[..., None]
    h = jnp.where(visible, hidden.astype(at_least_float32(hidden.dtype)), 0)
    mean = h.sum(1) / jnp.maximum(visible.sum(1), 1).astype(h.dtype)
    # The square root has no derivative at zero.
    square = jnp.square(mean).sum(1, keepdims=True)
    return mean * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
