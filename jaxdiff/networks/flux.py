"""The rectified flow transformer Flux (Black Forest Labs 2024): joint blocks, followed by single blocks.

Parameters are named like those of diffusers' FluxTransformer2DModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes
from jaxdiff.networks.attention import attend
from jaxdiff.networks.mmdit import JointBlock, final_layer, time_and_text
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import (
    Rotary,
    apply_rope,
    check_patches,
    dense,
    modulated_norm,
    modulations,
    pack,
    qkv,
    rope_table,
    scan_layers,
    unpack,
)
from jaxdiff.sharding import constrain_tokens

PATCH = 2


class SingleBlock(nn.Module):
    """Parallel attention and feed-forward over text and image as one sequence (Dehghani et al. 2023, sec. 2).

    Attributes:
        num_heads: of the attention; divides the width.
        dtype: type of the computation.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array, rope: Rotary) -> tuple[Array, None]:
        """Map tokens x[B, N, D] to the same shape, with condition [B, D] and the rotary positions of all tokens."""
        x, width = constrain_tokens(x), x.shape[-1]
        shift, scale, gate = modulations(condition, 3, self.dtype, "norm.linear")
        h = modulated_norm(x, shift, scale)
        names, norms = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.norm_q", "attn.norm_k")
        q, k, v = qkv(h, names, norms=norms, num_heads=self.num_heads, dtype=self.dtype)
        attended = attend(apply_rope(q, rope), apply_rope(k, rope), v).reshape(h.shape)
        fed = jax.nn.gelu(dense(4 * width, self.dtype, "proj_mlp")(h))
        return x + gate * dense(width, self.dtype, "proj_out")(jnp.concatenate([attended, fed], axis=-1)), None


class Flux(nn.Module):
    """Transformer over image and text tokens with rotary positions.

    Attributes:
        width: of the tokens.
        layers: joint blocks.
        single_layers: single blocks after them.
        num_heads: of the attention; divides the width.
        axes: rotary features of a head for an image's number, row and column; they sum to width / heads.
        context_dim: D of cond["tokens"].
        pooled_dim: D of cond["vector"], which joins the noise embedding.
        guidance: whether cond["guidance"], the scale of the distilled guidance, is an input.
        concat_channels: C' of cond["concat"], which is concatenated to the latents; None: off.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        unroll: blocks per turn of the loops over them.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, embedding, norms and
            output float32 at least.
    """

    width: int = 3072
    layers: int = 19
    single_layers: int = 38
    num_heads: int = 24
    axes: tuple[int, ...] = (16, 56, 56)
    context_dim: int = 4096
    pooled_dim: int = 768
    guidance: bool = False
    concat_channels: int | None = None
    remat: Remat = "dots"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, H, W, C], H and W even; a block of 2 x 2 is a token.
            noise: float[B], the flow's time in [0, 1].
            cond: "tokens" [B, L, context_dim] and "vector" [B, pooled_dim]; where configured "guidance" float[B] and
                "concat" [B, H, W, concat_channels].
            train: no effect; there is no dropout.

        Returns:
            like x, in float32 at least; zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or a size is odd.
        """
        cond = self._check(x, noise, cond)
        numbers = {"timestep": 1000 * noise} | ({"guidance": 1000 * cond["guidance"]} if self.guidance else {})
        condition = nn.silu(time_and_text(numbers, cond["vector"], self.width, self.dtype)).astype(self.dtype)

        h = x.astype(self.dtype)
        if self.concat_channels is not None:
            h = jnp.concatenate([h, cond["concat"].astype(self.dtype)], axis=-1)
        h = dense(self.width, self.dtype, "x_embedder")(pack(h, PATCH))
        batch, rows, columns, _ = h.shape
        text = dense(self.width, self.dtype, "context_embedder")(cond["tokens"])

        cos, sin = rope_table((1, rows, columns), self.axes)
        block = scan_layers(JointBlock, self.layers, remat=self.remat, unroll=self.unroll)(
            self.num_heads, True, dtype=self.dtype, name="transformer_blocks.*"
        )
        (h, text), _ = block((h.reshape(batch, -1, self.width), text), condition, (cos, sin))

        # All text tokens are at the origin.
        before = text.shape[1], cos.shape[1]
        rope = (
            jnp.concatenate([jnp.ones(before, cos.dtype), cos]),
            jnp.concatenate([jnp.zeros(before, sin.dtype), sin]),
        )
        single = scan_layers(SingleBlock, self.single_layers, remat=self.remat, unroll=self.unroll)(
            self.num_heads, self.dtype, name="single_transformer_blocks.*"
        )
        h, _ = single(jnp.concatenate([text, h], axis=1), condition, rope)
        h = final_layer(h[:, text.shape[1] :], condition, x.shape[-1] * PATCH**2, self.dtype)
        return unpack(h.reshape(batch, rows, columns, -1), PATCH)

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        check_patches(x, PATCH)
        if self.width % self.num_heads or sum(self.axes) != self.width // self.num_heads or len(self.axes) != 3:
            raise ValueError(
                f"axes must be three that sum to width / heads, got {self.axes} of {self.width}/{self.num_heads}"
            )
        shapes = cond_shapes(
            x,
            cond,
            context_dim=self.context_dim,
            pooled_dim=self.pooled_dim,
            guidance=self.guidance,
            concat_channels=self.concat_channels,
        )
        return check_cond(x, noise, cond, shapes)
