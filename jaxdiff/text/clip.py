"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020, sec. 2.4), a causal transformer.

Parameters are named like those of transformers' CLIPTextModelWithProjection; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import attend
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import LayerNorm, dense, qkv, scan_layers
from jaxdiff.text.parts import Embedding, Encoded, EncoderLayer, activation, check_tokens


class Layer(EncoderLayer):
    """Self-attention and a feed-forward network, each preceded by a norm.

    Attributes:
        causal: a token attends to itself and those before it alone.
    """

    causal: bool = True

    @nn.compact
    def __call__(self, carry: tuple[Array, Array, Array], mask: Array | None, chosen: int) -> tuple[Any, None]:
        """Map x[B, L, D]; the carry also contains the output of the chosen layer and the index of this layer."""
        x, kept, number = carry
        width = x.shape[-1]

        h = LayerNorm(self.eps, name="layer_norm1")(x)
        q, k, v = qkv(h, [f"self_attn.{name}_proj" for name in "qkv"], num_heads=self.num_heads, dtype=self.dtype)
        h = attend(q, k, v, mask=mask, causal=self.causal).reshape(x.shape)
        x = x + dense(width, self.dtype, "self_attn.out_proj")(h)

        h = LayerNorm(self.eps, name="layer_norm2")(x)
        h = activation(self.act)(dense(self.mlp_dim, self.dtype, "mlp.fc1")(h))
        x = x + dense(width, self.dtype, "mlp.fc2")(h)
        return (x, jnp.where(number == chosen, x, kept), number + 1), None


class CLIPText(nn.Module):
    """CLIP's text encoder.

    Attributes:
        vocab_size: number of tokens.
        width: features of a token.
        layers: number of layers.
        num_heads: of the attention; divides the width.
        mlp_dim: inner width of the feed-forward networks.
        max_length: length of the longest text, in tokens.
        projection: features of the pooled vector after a linear layer; None: no such layer.
        act: the feed-forward networks' activation, "quick_gelu" (OpenAI's models) or "gelu" (OpenCLIP's).
        eos: pool the first token with this id; None: pool the token with the largest id.
        eps: of the norms.
        remat: what the backward pass recomputes in each layer: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    max_length: int = 77
    projection: int | None = None
    act: str = "quick_gelu"
    eos: int | None = 49407
    eps: float = 1e-5
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None, *, layer: int = -1, norm: bool = True) -> Encoded:
        """Encode texts.

        Args:
            ids: int[B, L].
            mask: bool[B, L], True for visible tokens; None: all are visible.
            layer: which layer's output to return: -1 is the last, -2 the one before.
            norm: apply the final norm to that output, as with Stable Diffusion's "clip skip"; Stable Diffusion XL
                and 3 use layer -2 without the norm.

        Returns:
            the layer's output [B, L, width], and the pooled vector [B, projection or width], of the last layer after
            the norm.

        Raises:
            ValueError: ids or mask is misshapen, there are too many tokens, or the layer does not exist.
        """
        check_tokens(ids, mask, self.max_length)
        if not -self.layers <= layer <= -1:
            raise ValueError(f"layer counts from the end, -{self.layers}..-1, got {layer}")
        if self.width % self.num_heads:
            raise ValueError(f"heads must divide the width {self.width}, got {self.num_heads}")
        root = "text_model.embeddings"
        x = Embedding(self.vocab_size, self.width, self.dtype, name=f"{root}.token_embedding")(ids)
        places = jnp.arange(ids.shape[1])[None]
        x = x + Embedding(self.max_length, self.width, self.dtype, name=f"{root}.position_embedding")(places)

        stack = scan_layers(Layer, self.layers, remat=self.remat)
        options = self.num_heads, self.mlp_dim, self.act, self.eps, self.dtype
        run = stack(*options, name="text_model.encoder.layers.*")
        (x, hidden, _), _ = run((x, x, jnp.zeros((), jnp.int32)), mask, self.layers + layer)

        final = LayerNorm(self.eps, name="text_model.final_layer_norm")
        at = jnp.argmax(ids if self.eos is None else ids == self.eos, axis=1)
        pooled = final(jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0])
        if self.projection is not None:
            pooled = dense(self.projection, self.dtype, "text_projection", bias=False)(pooled)
        return Encoded(final(hidden) if norm else hidden, pooled)
