"""U-Nets with joint attention to positions and tokens (Nichol et al. 2021, arXiv:2112.10741, sec. 4).

These are GLIDE's descendants: DeepFloyd IF, Karlo, Kandinsky 2. Parameters are named like those of diffusers'
UNet2DConditionModel with "SimpleCrossAttn" blocks; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import Shape
from jaxdiff.networks.attention import attend, split_heads, with_control
from jaxdiff.networks.initializers import param, table_init
from jaxdiff.networks.layers import GroupNorm, at_least_float32
from jaxdiff.networks.remat import rematted
from jaxdiff.networks.tokens import LayerNorm, dense
from jaxdiff.networks.unet import UNet

TOKEN_GROUPS = 32  # groups of the tokens' norm


class JointAttention(nn.Module):
    """Residual self-attention over positions, with the keys and values of tokens appended.

    Attributes:
        head_dim: channels per head; divides C.
        cross_only: attend to the tokens only.
        token_norm: a group norm of the tokens, with means over all tokens.
        groups: of the group norm of x.
        dtype: type of the computation; softmax is float32 at least.
        identity: replace self-attention's map by the identity; see `attention.Attention`.
    """

    head_dim: int
    cross_only: bool = False
    token_norm: bool = False
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    identity: bool = False

    @nn.compact
    def __call__(self, x: Array, tokens: Array, mask: Array | None = None) -> Array:
        """Attend from x[B, *spatial, C] to the tokens[B, L, D], where mask[B, L] is True, and to x."""
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.head_dim:
            raise ValueError(f"head_dim must divide the channels, got {self.head_dim} for {channels} channels")

        def heads(a: Array, name: str) -> Array:
            return split_heads(dense(channels, self.dtype, name)(a), channels // self.head_dim)

        h = GroupNorm(self.groups, name="group_norm")(x).reshape(batch, -1, channels)
        tokens = tokens.astype(self.dtype)
        if self.token_norm:
            tokens = GroupNorm(TOKEN_GROUPS, name="norm_cross")(tokens)
        q, k, v = heads(h, "to_q"), heads(tokens, "add_k_proj"), heads(tokens, "add_v_proj")
        if not self.cross_only:
            k_v = heads(h, "to_k"), heads(h, "to_v")
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip((k, v), k_v, strict=True))
            if mask is not None:
                mask = jnp.concatenate([mask, jnp.ones(h.shape[:2], bool)], axis=1)
        y = k_v[1] if self.identity and not self.cross_only else attend(q, k, v, mask=mask, cross=self.cross_only)
        return x + dense(channels, self.dtype, "to_out.0", zero=True)(y.reshape(h.shape)).reshape(x.shape)


class AttentionPool(nn.Module):
    """Attention pooling: one vector of several tokens, whose mean is the query (Radford et al. 2021, sec. 2.4).

    Attributes:
        num_heads: of the attention; divides D.
        dtype: type of the computation; softmax is float32 at least.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Map tokens[B, L, D] to [B, D]."""
        width = tokens.shape[-1]
        place = param(self, "positional_embedding", table_init, (1, width)).astype(self.dtype)
        mean = tokens.mean(axis=1, keepdims=True) + place[None]
        inputs = jnp.concatenate([mean, tokens], axis=1)
        parts = (("q_proj", mean), ("k_proj", inputs), ("v_proj", inputs))
        q, k, v = (split_heads(dense(width, self.dtype, name)(a), self.num_heads) for name, a in parts)
        with with_control(None):  # it is no attention of the picture
            return attend(q, k, v).reshape(len(tokens), width)


class JointUNet(UNet):
    """A U-Net with `JointAttention` after its residual blocks, at the levels with attention and at the bottom.

    Attributes, in addition to those of `UNet`:
        cross_only: levels with attention to the tokens only; -1 is the bottom.
        token_norm: a group norm of the tokens before each attention.
        pool_num_heads: heads of the attention that pools cond["tokens"]; the result is added to the noise embedding
            (Saharia et al. 2022, arXiv:2205.11487, sec. 2.1); None: off.
        image_dim: D of cond["image"] [B, D], an image embedding, which is added to the noise embedding and mapped to
            tokens; None: off.
        image_tokens: number of these tokens. They precede cond["tokens"] or, if context_dim is None, replace them.
    """

    cross_only: tuple[int, ...] = ()
    token_norm: bool = False
    pool_num_heads: int | None = None
    image_dim: int | None = None
    image_tokens: int = 10

    def _attention(self, h: Array, inputs: Any, place: tuple[str, int], level: int) -> Array:
        name, index = place
        attention = rematted(JointAttention, self.remat)
        return attention(
            self.head_dim or h.shape[-1],
            level in self.cross_only,
            self.token_norm,
            self._groups(level),
            self.dtype,
            name in self.identity_attention,
            name=f"{name}.attentions.{index}",
        )(h, inputs.tokens, inputs.mask)

    def _block_inputs(self, noise: Array, cond: Mapping[str, Any], train: bool) -> Any:
        inputs = super()._block_inputs(noise, cond, train)
        if inputs.mask is None or self.image_dim is None:
            return inputs
        image = jnp.ones((len(inputs.mask), self.image_tokens), bool)
        return inputs._replace(mask=jnp.concatenate([image, inputs.mask], axis=1))

    def _tokens(self, cond: Mapping[str, Any]) -> Array | None:
        width = self.token_width
        if self.image_dim is None or width is None:
            return super()._tokens(cond)
        image = cond["image"].astype(self.dtype)
        many = dense(self.image_tokens * width, self.dtype, "encoder_hid_proj.image_embeds")(image)
        many = many.reshape(len(image), self.image_tokens, width)
        if self.context_dim is None:
            return LayerNorm(name="encoder_hid_proj.norm")(many)
        text_tokens = dense(width, self.dtype, "encoder_hid_proj.text_proj")(cond["tokens"])
        return jnp.concatenate([many, text_tokens], axis=1)

    def _embed(self, noise: Array, cond: Mapping[str, Any]) -> Array:
        emb = super()._embed(noise, cond)
        dim, dtype = emb.shape[-1], at_least_float32(self.dtype)
        if self.pool_num_heads is not None:
            h = LayerNorm(name="add_embedding.norm1")(cond["tokens"].astype(dtype))
            h = AttentionPool(self.pool_num_heads, dtype, name="add_embedding.pool")(h)
            emb = emb + LayerNorm(name="add_embedding.norm2")(dense(dim, dtype, "add_embedding.proj")(h))
        if self.image_dim is not None:
            image = dense(dim, dtype, "add_embedding.image_proj")(cond["image"])
            emb = emb + (LayerNorm(name="add_embedding.image_norm")(image) if self.context_dim is None else image)
        return emb

    def _vector(self, vector: Array, dim: int) -> Array:
        if self.image_dim is None:
            return super()._vector(vector, dim)
        # With an image embedding, the vector is a text embedding.
        return LayerNorm(name="add_embedding.text_norm")(dense(dim, vector.dtype, "add_embedding.text_proj")(vector))

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if self.transformer is not None:
            raise ValueError("joint attention takes the place of transformers")
        if (self.token_width if self.image_dim else self.context_dim) is None:
            raise ValueError("joint attention needs tokens: context_dim must be set, or image_dim and token_width")
        return super()._check(x, noise, cond)

    def _shapes(self, x: Array, cond: Mapping[str, Any]) -> dict[str, Shape]:
        image = {} if self.image_dim is None else {"image": (x.shape[0], self.image_dim)}
        return super()._shapes(x, cond) | image
