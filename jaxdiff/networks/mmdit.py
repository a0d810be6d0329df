"""The multimodal diffusion transformer, MMDiT, of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206).

Parameters are named like those of diffusers' SD3Transformer2DModel; see `interop.formats.keys` for the rule. A run of
equal blocks that starts later, e.g. `transformer_blocks.13+.*`, counts its layers from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes
from jaxdiff.networks.attention import attend
from jaxdiff.networks.dit import FEATURES
from jaxdiff.networks.embed import EmbeddingMLP, Sinusoidal
from jaxdiff.networks.initializers import param
from jaxdiff.networks.layers import Conv, at_least_float32, depth_to_space
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.networks.tokens import (
    FeedForward,
    Rotary,
    apply_rope,
    check_patches,
    dense,
    grid_table,
    modulated_norm,
    modulations,
    qkv,
    scan_layers,
)
from jaxdiff.sharding import constrain_tokens


class JointBlock(nn.Module):
    """Joint attention over image and text, with separate weights (Esser et al. 2024, fig. 2b).

    Attributes:
        num_heads: of the attention; divides the width.
        qk_norm: RMS norm of queries and keys (sec. 5.3.2).
        dual: a second attention over the image only, parallel to the joint one (Stable Diffusion 3.5 medium).
        last: the block does not update the text.
        dtype: type of the computation.
    """

    num_heads: int
    qk_norm: bool = False
    dual: bool = False
    last: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: tuple[Array, Array], condition: Array, rope: Rotary | None = None
    ) -> tuple[tuple[Array, Array], None]:
        """Map the tokens of image and text to the same shapes.

        Args:
            both: image [B, N, D] and text [B, L, D].
            condition: [B, D], through its SiLU.
            rope: rotary positions of the image tokens; the text has none.

        Returns:
            ((image, text), None); with `last`, the text is unchanged.
        """
        x, text = map(constrain_tokens, tokens)
        shift, scale, gate, shift2, scale2, gate2, *more = modulations(
            condition, 9 if self.dual else 6, self.dtype, "norm1.linear"
        )
        if self.last:
            text_scale, text_shift = modulations(condition, 2, self.dtype, "norm1_context.linear")
        else:
            text_shift, text_scale, *text_more = modulations(condition, 6, self.dtype, "norm1_context.linear")

        attended, text_attended = self._attend(
            modulated_norm(x, shift, scale), modulated_norm(text, text_shift, text_scale), rope
        )
        y = x + gate * self._dense(attended, "attn.to_out.0")
        if self.dual:
            shift3, scale3, gate3 = more
            y = y + gate3 * self._attend_image(modulated_norm(x, shift3, scale3))
        x = y + gate2 * self._feed(modulated_norm(y, shift2, scale2), "ff")
        if self.last:
            return (x, text), None
        text_gate, text_shift2, text_scale2, text_gate2 = text_more
        text = text + text_gate * self._dense(text_attended, "attn.to_add_out")
        text = text + text_gate2 * self._feed(modulated_norm(text, text_shift2, text_scale2), "ff_context")
        return (x, text), None

    def _attend(self, x: Array, text: Array, rope: Rotary | None) -> tuple[Array, Array]:
        names, norms = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.norm_q", "attn.norm_k")
        q, k, v = self._project(x, names, norms)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        names = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
        of_text = self._project(text, names, ("attn.norm_added_q", "attn.norm_added_k"))
        y = attend(*(jnp.concatenate(pair, axis=1) for pair in zip(of_text, (q, k, v), strict=True)))
        y = y.reshape(*y.shape[:2], -1)
        return y[:, text.shape[1] :], y[:, : text.shape[1]]

    def _attend_image(self, x: Array) -> Array:
        names, norms = ("attn2.to_q", "attn2.to_k", "attn2.to_v"), ("attn2.norm_q", "attn2.norm_k")
        return self._dense(attend(*self._project(x, names, norms)).reshape(x.shape), "attn2.to_out.0")

    def _project(self, x: Array, names: tuple[str, ...], norms: tuple[str, ...]) -> list[Array]:
        return qkv(x, names, norms=norms if self.qk_norm else (), num_heads=self.num_heads, dtype=self.dtype)

    def _dense(self, x: Array, name: str) -> Array:
        return dense(x.shape[-1], self.dtype, name)(x)

    def _feed(self, x: Array, name: str) -> Array:
        return FeedForward(4 * x.shape[-1], dtype=self.dtype, name=name)(x)


class MMDiT(nn.Module):
    """Transformer over image patches and text tokens (Esser et al. 2024, sec. 4).

    The table of positions is the parameter "pos_embed.pos_embed", as in the checkpoints; its gradient is zero.

    Attributes:
        width: features of a token; a multiple of num_heads and of 4.
        layers: blocks; the last one does not update the text.
        num_heads: of the attention.
        patch_size: edge of a patch.
        context_dim: D of cond["tokens"].
        pooled_dim: D of cond["vector"], which joins the noise embedding.
        out_channels: channels of the output; None: as many as x has.
        grid: patches along an edge of the images in training.
        pos_embed_max_size: patches along an edge of the table of positions, which spans the same range; an image uses
            the middle of the table.
        qk_norm: RMS norm of queries and keys (Stable Diffusion 3.5).
        dual: indices of blocks with a second attention over the image only (Stable Diffusion 3.5 medium).
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        unroll: blocks per turn of the loops over equal ones.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, embedding, norms and
            output float32 at least.
    """

    width: int = 1152
    layers: int = 18
    num_heads: int = 18
    patch_size: int = 2
    context_dim: int = 4096
    pooled_dim: int = 2048
    out_channels: int | None = None
    grid: int = 64
    pos_embed_max_size: int = 96
    qk_norm: bool = False
    dual: tuple[int, ...] = ()
    remat: Remat = "dots"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    expects_hundreds: ClassVar[bool] = True  # of its noise input, see `as_apply`

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, H, W, C], H and W multiples of patch_size, pos_embed_max_size patches at most.
            noise: float[B], the network's noise input; 1000 times the flow's time in the published networks.
            cond: "tokens" [B, L, context_dim] and "vector" [B, pooled_dim].
            train: no effect; there is no dropout.

        Returns:
            [B, H, W, out_channels], zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or patches do not tile the image.
        """
        cond = self._check(x, noise, cond)
        condition = nn.silu(time_and_text({"timestep": noise}, cond["vector"], self.width, self.dtype))
        condition = condition.astype(self.dtype)
        h = Conv(self.width, self.patch_size, self.patch_size, (0, 0), dtype=self.dtype, name="pos_embed.proj")(x)
        batch, rows, columns, _ = h.shape
        h = (h + self._positions(rows, columns)).reshape(batch, -1, self.width)
        both = h, dense(self.width, self.dtype, "context_embedder")(cond["tokens"])

        for dual, start, length in self._runs():
            name = f"transformer_blocks.{start}+.*" if start else "transformer_blocks.*"
            block = scan_layers(JointBlock, length, remat=self.remat, unroll=self.unroll)
            both, _ = block(self.num_heads, self.qk_norm, dual, dtype=self.dtype, name=name)(both, condition)
        final = self.layers - 1
        block = rematted(JointBlock, self.remat)
        (h, _), _ = block(
            self.num_heads, self.qk_norm, final in self.dual, True, self.dtype, name=f"transformer_blocks.{final}"
        )(both, condition)

        channels = x.shape[-1] if self.out_channels is None else self.out_channels
        h = final_layer(h, condition, channels * self.patch_size**2, self.dtype)
        return depth_to_space(h.reshape(batch, rows, columns, -1), self.patch_size)

    def _runs(self) -> Iterator[tuple[bool, int, int]]:
        """Return (dual, first, count) for each run of equal blocks before the last block."""
        for dual, run in groupby(range(self.layers - 1), lambda i: i in self.dual):
            numbers = list(run)
            yield dual, numbers[0], len(numbers)

    def _positions(self, rows: int, columns: int) -> Array:
        places = np.arange(self.pos_embed_max_size) * (self.grid / self.pos_embed_max_size)

        def start(_key: Array, shape: tuple[int, ...]) -> Array:
            return grid_table(places, places, self.width).astype(jnp.float32).reshape(shape)

        table = param(self, "pos_embed.pos_embed", start, (1, self.pos_embed_max_size**2, self.width))
        table = (
            jax.lax.stop_gradient(table)
            .astype(self.dtype)
            .reshape(1, self.pos_embed_max_size, self.pos_embed_max_size, self.width)
        )
        top, left = (self.pos_embed_max_size - rows) // 2, (self.pos_embed_max_size - columns) // 2
        return table[:, top : top + rows, left : left + columns]

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        check_patches(x, self.patch_size)
        if max(x.shape[1:3]) > self.pos_embed_max_size * self.patch_size:
            raise ValueError(
                f"height and width must be {self.pos_embed_max_size * self.patch_size} at most, got shape {x.shape}"
            )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, got {self.width} and {self.num_heads} heads")
        if any(not 0 <= i < self.layers for i in self.dual):
            raise ValueError(f"dual must name blocks from 0 to {self.layers - 1}, got {self.dual}")
        shapes = cond_shapes(x, cond, context_dim=self.context_dim, pooled_dim=self.pooled_dim)
        return check_cond(x, noise, cond, shapes)


def time_and_text(numbers: Mapping[str, Array], vector: Array, width: int, dtype: Any) -> Array:
    """Return the sum of the embeddings of numbers, e.g. the noise level, and of the pooled text.

    Args:
        numbers: float[B] by name.
        vector: [B, D], the pooled text.
        width: features of the embedding.
        dtype: dtype of the network's computation.

    Returns:
        [B, width], in float32 at least.
    """
    emb = EmbeddingMLP(width, dtype, name="time_text_embed.text_embedder")(vector)
    for name, number in numbers.items():
        features = Sinusoidal()(number.astype(at_least_float32(dtype)), FEATURES)
        emb = emb + EmbeddingMLP(width, dtype, name=f"time_text_embed.{name}_embedder")(features)
    return emb


def final_layer(h: Array, condition: Array, features: int, dtype: Any) -> Array:
    """Apply the last norm, modulated, and the projection of [B, N, D] to [B, N, features], float32 at least."""
    scale, shift = modulations(condition, 2, dtype, "norm_out.linear")
    return dense(features, dtype, "proj_out", zero=True)(modulated_norm(h, shift, scale)).astype(
        at_least_float32(dtype)
    )
