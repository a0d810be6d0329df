"""Transformers over the positions of [B, *spatial, C] data, with cross-attention to tokens (Rombach et al. 2022).

Parameters are named like those of diffusers' Transformer2DModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import attend, split_heads, visible, with_control
from jaxdiff.networks.layers import Conv, GroupNorm
from jaxdiff.networks.remat import Remat
from jaxdiff.networks.tokens import LayerNorm, dense, geglu, scan_layers
from jaxdiff.sharding import constrain_tokens

Depth = int | tuple[int, ...]


@dataclass(frozen=True)
class TransformerConfig:
    """The transformers of a U-Net (Rombach et al. 2022, sec. 3.3; Podell et al. 2023, sec. 2.1).

    Attributes:
        depth: blocks of a transformer by level: one number, or one per residual block; the bottom has the depth of the
            last level.
        num_heads: attention heads by level.
        linear: linear layers before and after the blocks; False: convolutions of size 1, which compute the same.
        cross_only: levels, except the bottom, at which the blocks' first attention is also to the tokens.
        up_depth: depth of the decoder by level; None: that of the encoder.
    """

    depth: tuple[Depth, ...]
    num_heads: tuple[int, ...]
    linear: bool = False
    cross_only: tuple[int, ...] = ()
    up_depth: tuple[Depth, ...] | None = None

    def blocks(self, level: int, index: int, *, up: bool = False) -> int:
        """Number of blocks of the transformer after residual block `index` of a level."""
        depth = (self.depth if self.up_depth is None or not up else self.up_depth)[level]
        return depth if isinstance(depth, int) else depth[index]

    def check(self, count: int, levels: Iterable[int]) -> None:
        """Check the fields against a U-Net.

        Args:
            count: number of the U-Net's levels.
            levels: levels with transformers.

        Raises:
            ValueError: the number of depths or heads is not that of the levels, or one is below 1 at a level with
                transformers.
        """
        per_level = self.depth, self.up_depth or self.depth, self.num_heads
        fits = all(len(values) == count for values in per_level)
        used: list[Depth] = [values[i] for values in per_level for i in levels] if fits else []
        if not fits or any((min(n) if isinstance(n, tuple) else n) < 1 for n in used):
            raise ValueError(
                f"transformers need depth and heads, from 1 on, for each of the {count} levels, got {self.depth} "
                f"and {self.num_heads}"
            )


class ImagePrompt(NamedTuple):
    """Tokens of an image, [B, L, D], and the scale of the attention to them, [B]; see `ip_adapter`."""

    tokens: Array
    scale: Array


class Block(nn.Module):
    """Attention among the positions, attention to the tokens, and a feed-forward layer with a GELU gate.

    Attributes:
        num_heads: of both attentions; divides the width.
        cross_only: the first attention is also to the tokens.
        identity: replace self-attention's map by the identity; see `attention.Attention`.
        dtype: type of the computation.
    """

    num_heads: int
    cross_only: bool = False
    identity: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, tokens: Array | None, mask: Array | None, image: ImagePrompt | None
    ) -> tuple[Array, None]:
        """Map x[B, N, C] to the same shape, with attention to tokens[B, L, D] where mask[B, L] is True, or to x."""
        x = constrain_tokens(x)
        h = LayerNorm(name="norm1")(x)
        if self.cross_only and tokens is not None:
            x = x + self._attend(h, tokens, mask, "attn1")
        else:
            x = x + self._attend(h, h, None, "attn1", identity=self.identity)
        h = LayerNorm(name="norm2")(x)
        x = x + self._attend(h, h if tokens is None else tokens, mask, "attn2", image=image)

        return x + geglu(LayerNorm(name="norm3")(x), self.dtype, "ff"), None

    def _attend(
        self, x: Array, source: Array, mask: Array | None, name: str, *, identity: bool = False,
        image: ImagePrompt | None = None,
    ) -> Array:  # fmt: skip
        def project(a: Array, to: str) -> Array:
            return dense(x.shape[-1], self.dtype, f"{name}.{to}", bias=False)(a)

        q, k, v = project(x, "to_q"), project(source, "to_k"), project(source, "to_v")
        # An identity map returns the values; queries and keys only keep their parameters, and `jit` removes them.
        if not identity:
            q, k, v = (split_heads(a, self.num_heads) for a in (q, k, v))
            v = attend(q, k, v, mask=mask, cross=source is not x).reshape(x.shape)
        if image is not None:
            k, v_image = (
                split_heads(project(image.tokens, f"processor.{to}_ip.0"), self.num_heads) for to in ("to_k", "to_v")
            )
            scale = image.scale.astype(v.dtype)[:, None, None]
            with with_control(None):  # maps of the text's words are none of the image's
                v = v + scale * attend(q, k, v_image).reshape(x.shape)
        return dense(x.shape[-1], self.dtype, f"{name}.to_out.0")(v)


class Transformer2D(nn.Module):
    """Norm, projection, blocks, projection (from zero); added to the input.

    Attributes:
        depth: blocks.
        num_heads: of the attentions; divides C.
        linear: see `TransformerConfig`.
        cross_only: see `Block`.
        identity: see `Block`.
        groups: of the group norm, whose epsilon is 1e-6.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation.
    """

    depth: int
    num_heads: int
    linear: bool = False
    cross_only: bool = False
    identity: bool = False
    groups: int = 32
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, tokens: Array | None, mask: Array | None = None, image: ImagePrompt | None = None
    ) -> Array:
        """Attend from every position to all positions and to the tokens.

        Args:
            x: [B, *spatial, C].
            tokens: [B, L, D]; None: attend to the positions instead.
            mask: bool[B, L], True for visible tokens.
            image: an image to which the second attention of each block attends, too.

        Returns:
            Like x.

        Raises:
            ValueError: num_heads does not divide C.
        """
        channels = x.shape[-1]
        if channels % self.num_heads:
            raise ValueError(f"heads must divide the channels, got {self.num_heads} heads for {channels} channels")
        tokens = None if tokens is None else tokens.astype(self.dtype)
        if tokens is not None and mask is not None:
            tokens = visible(tokens, mask)
        if image is not None:
            image = image._replace(tokens=image.tokens.astype(self.dtype))
        h = GroupNorm(self.groups, 1e-6, name="norm")(x)
        h = self._project(h, "proj_in").reshape(x.shape[0], -1, channels)
        block = scan_layers(Block, self.depth, remat=self.remat)(
            self.num_heads, self.cross_only, self.identity, self.dtype, name="transformer_blocks.*"
        )
        h, _ = block(h, tokens, mask, image)
        return x + self._project(h.reshape(x.shape), "proj_out", zero=True)

    def _project(self, h: Array, name: str, *, zero: bool = False) -> Array:
        if self.linear:
            return dense(h.shape[-1], self.dtype, name, zero=zero)(h)
        return Conv(h.shape[-1], size=1, zero=zero, dtype=self.dtype, name=name)(h)
