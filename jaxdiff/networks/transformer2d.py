"""Transformers over the positions of [B, *spatial, C] data, with cross-attention to tokens (Rombach et al. 2022).

Parameters are named like those of diffusers' Transformer2DModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
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


class ImagePrompts(NamedTuple):
    """Tokens of images, [B, L, D] of each, and the scales of the attention to them, [B] of each; see `ip_adapter`."""

    tokens: tuple[Array, ...] = ()
    scales: tuple[Array, ...] = ()


NO_IMAGES = ImagePrompts()


class Block(nn.Module):
    """Attention among the positions, attention to the tokens, and a feed-forward layer with a GELU gate.

    Attributes:
        num_heads: of both attentions; divides the width.
        cross_only: the first attention is also to the tokens.
        identity: replace self-attention's map by the identity; see `attention.Attention`.
        image_ranks: see `Transformer2D`.
        dtype: type of the computation.
    """

    num_heads: int
    cross_only: bool = False
    identity: bool = False
    image_ranks: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None, mask: Array | None, images: ImagePrompts) -> tuple[Array, None]:
        """Map x[B, N, C] to the same shape, with attention to tokens[B, L, D] where mask[B, L] is True, or to x."""
        x = constrain_tokens(x)
        h = LayerNorm(name="norm1")(x)
        if self.cross_only and tokens is not None:
            x = x + self._attend(h, tokens, mask, images, name="attn1")
        else:
            x = x + self._attend(h, h, None, images, name="attn1", identity=self.identity)
        h = LayerNorm(name="norm2")(x)
        x = x + self._attend(h, h if tokens is None else tokens, mask, images, name="attn2")
        return x + geglu(LayerNorm(name="norm3")(x), self.dtype, "ff"), None

    def _attend(
        self, x: Array, source: Array, mask: Array | None, images: ImagePrompts, *, name: str, identity: bool = False
    ) -> Array:
        linear = partial(dense, dtype=self.dtype, bias=False)

        def changed(y: Array, a: Array, to: str) -> Array:
            """A projection y of a, with the low-rank changes of the images whose scale is not 0."""
            for i, rank in enumerate(self.image_ranks):
                if rank:
                    down = linear(rank, name=f"{name}.processor.{to}_lora.{i}.down")(a)
                    on = (images.scales[i] != 0).astype(y.dtype)[:, None, None]
                    y = y + on * linear(y.shape[-1], name=f"{name}.processor.{to}_lora.{i}.up")(down)
            return y

        def project(a: Array, to: str) -> Array:
            return changed(linear(x.shape[-1], name=f"{name}.{to}")(a), a, to)

        q, k, v = project(x, "to_q"), project(source, "to_k"), project(source, "to_v")
        # An identity map returns the values; queries and keys only keep their parameters, and `jit` removes them.
        if not identity:
            q, k, v = (split_heads(a, self.num_heads) for a in (q, k, v))
            v = attend(q, k, v, mask=mask, cross=source is not x).reshape(x.shape)
        for i, (image, scale) in enumerate(zip(*images, strict=True) if name == "attn2" else ()):
            k, v_image = (
                split_heads(linear(x.shape[-1], name=f"{name}.processor.{to}_ip.{i}")(image), self.num_heads)
                for to in ("to_k", "to_v")
            )
            with with_control(None):  # maps of the text's words are none of the image's
                v = v + scale.astype(v.dtype)[:, None, None] * attend(q, k, v_image).reshape(x.shape)
        return changed(dense(x.shape[-1], self.dtype, f"{name}.to_out.0")(v), v, "to_out")


class Transformer2D(nn.Module):
    """Norm, projection, blocks, projection (from zero); added to the input.

    Attributes:
        depth: blocks.
        num_heads: of the attentions; divides C.
        linear: see `TransformerConfig`.
        cross_only: see `Block`.
        identity: see `Block`.
        image_ranks: for each image to which the second attention attends, too, the rank of the changes of both
            attentions' projections that come with it, or 0 for none; see `ip_adapter`.
        groups: of the group norm, whose epsilon is 1e-6.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation.
    """

    depth: int
    num_heads: int
    linear: bool = False
    cross_only: bool = False
    identity: bool = False
    image_ranks: tuple[int, ...] = ()
    groups: int = 32
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, tokens: Array | None, mask: Array | None = None, images: ImagePrompts = NO_IMAGES
    ) -> Array:
        """Attend from every position to all positions and to the tokens.

        Args:
            x: [B, *spatial, C].
            tokens: [B, L, D]; None: attend to the positions instead.
            mask: bool[B, L], True for visible tokens.
            images: as many as `image_ranks`.

        Returns:
            like x.

        Raises:
            ValueError: num_heads does not divide C.
        """
        channels = x.shape[-1]
        if channels % self.num_heads:
            raise ValueError(f"heads must divide the channels, got {self.num_heads} heads for {channels} channels")
        tokens = None if tokens is None else tokens.astype(self.dtype)
        if tokens is not None and mask is not None:
            tokens = visible(tokens, mask)
        images = images._replace(tokens=tuple(image.astype(self.dtype) for image in images.tokens))
        h = GroupNorm(self.groups, 1e-6, name="norm")(x)
        h = self._project(h, "proj_in").reshape(x.shape[0], -1, channels)
        block = scan_layers(Block, self.depth, remat=self.remat)(
            self.num_heads, self.cross_only, self.identity, self.image_ranks, self.dtype, name="transformer_blocks.*"
        )
        h, _ = block(h, tokens, mask, images)
        return x + self._project(h.reshape(x.shape), "proj_out", zero=True)

    def _project(self, h: Array, name: str, *, zero: bool = False) -> Array:
        if self.linear:
            return dense(h.shape[-1], self.dtype, name, zero=zero)(h)
        return Conv(h.shape[-1], size=1, zero=zero, dtype=self.dtype, name=name)(h)
