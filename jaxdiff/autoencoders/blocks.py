"""Encoder and decoder of the autoencoders (Rombach et al. 2022, app. G), with diffusers' names."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import Attention
from jaxdiff.networks.layers import Conv, Downsample, GroupNorm, Upsample

EPS = 1e-6  # epsilon of every group norm


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, conv, norm, SiLU, conv (zero at initialization).

    Attributes:
        features: output channels.
        groups: of the group norms.
        dtype: type of the computation.
    """

    features: int
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x[B, *spatial, C] to [B, *spatial, features]."""
        h = nn.silu(GroupNorm(self.groups, EPS, name="norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm(self.groups, EPS, name="norm2")(h))
        h = Conv(self.features, zero=True, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class _Half(nn.Module):
    """Base of encoder and decoder.

    Attributes:
        features: output channels.
        widths: channels by level, the finest first; each further level halves the spatial axes.
        num_blocks: residual blocks per level in the encoder; the decoder has one more.
        mid_attention: attention between the two blocks at the bottom.
        groups: groups of the norms; divides all widths.
        dtype: type of the computation.
        attention: levels with attention after each residual block.
    """

    features: int
    widths: tuple[int, ...]
    num_blocks: int
    mid_attention: bool
    groups: int
    dtype: jnp.dtype
    attention: tuple[int, ...] = ()

    def _stage(self, h: Array, name: str, index: int, level: int) -> Array:
        """Apply a residual block and its attention; level -1 is the bottom."""
        h = ResBlock(self.widths[level], self.groups, self.dtype, name=f"{name}.resnets.{index}")(h)
        attend = level in self.attention if level >= 0 else self.mid_attention and index == 0
        if not attend:
            return h
        return Attention(None, self.groups, EPS, self.dtype, name=f"{name}.attentions.{index}")(h)

    def _middle(self, h: Array) -> Array:
        return self._stage(self._stage(h, "mid_block", 0, -1), "mid_block", 1, -1)

    def _output(self, h: Array) -> Array:
        h = nn.silu(GroupNorm(self.groups, EPS, name="conv_norm_out")(h))
        return Conv(self.features, dtype=self.dtype, name="conv_out")(h)


class Encoder(_Half):
    """Images to latents; see `_Half` for the attributes."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, *spatial, C] to [B, *spatial / 2^(levels - 1), features]."""
        h = Conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            name = f"down_blocks.{level}"
            for i in range(self.num_blocks):
                h = self._stage(h, name, i, level)
            if level < len(self.widths) - 1:
                h = Downsample(width, pad=(0, 1), dtype=self.dtype, name=f"{name}.downsamplers.0")(h)
        return self._output(self._middle(h))


class Decoder(_Half):
    """Latents to images; see `_Half` for the attributes."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Map [B, *spatial, C] to [B, *spatial * 2^(levels - 1), features]."""
        h = self._middle(Conv(self.widths[-1], dtype=self.dtype, name="conv_in")(z))
        for i, width in enumerate(reversed(self.widths)):
            name = f"up_blocks.{i}"
            for j in range(self.num_blocks + 1):
                h = self._stage(h, name, j, len(self.widths) - 1 - i)
            if i < len(self.widths) - 1:
                h = Upsample(width, dtype=self.dtype, name=f"{name}.upsamplers.0")(h)
        return self._output(h)
