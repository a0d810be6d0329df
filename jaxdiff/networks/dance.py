"""Dance Diffusion's U-Net for audio: one axis, fixed filters between the levels, attention at the deeper levels.

Parameters, except those of the attention, are named like those of diffusers' UNet1DModel; see
`interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.apply import check_cond
from jaxdiff.networks.attention import Attention
from jaxdiff.networks.embed import Frequencies
from jaxdiff.networks.initializers import param
from jaxdiff.networks.layers import Conv, GroupNorm, at_least_float32, check_divisible

HALF = np.array([-0.01171875, -0.03515625, 0.11328125, 0.43359375])
CUBIC = np.concatenate([HALF, HALF[::-1]])  # cubic interpolation at half the rate
gelu = partial(jax.nn.gelu, approximate=False)


class ResConvBlock(nn.Module):
    """Convolution, norm, GELU, twice, added to the input.

    Attributes:
        middle: channels between the convolutions.
        features: output channels.
        last: omit the second norm and GELU.
        dtype: type of the computation.
    """

    middle: int
    features: int
    last: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, L, C] to [B, L, features]."""
        h = Conv(self.middle, size=5, dtype=self.dtype, name="conv_1")(x)
        h = gelu(GroupNorm(1, name="group_norm_1")(h))
        h = Conv(self.features, size=5, dtype=self.dtype, name="conv_2")(h)
        if not self.last:
            h = gelu(GroupNorm(1, name="group_norm_2")(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, bias=False, dtype=self.dtype, name="conv_skip")(x)
        return x.astype(self.dtype) + h


class Level(nn.Module):
    """A level: residual blocks, each followed by attention, and a filter before or after them.

    The filters are parameters, as in the checkpoints, but their gradients are zero.

    Attributes:
        widths: output channels of each block.
        middle: channels within the blocks.
        attend: whether there is attention.
        down: halve the axis first.
        up: double the axis at the end.
        last: `last` of the last block; see `ResConvBlock`.
        dtype: type of the computation.
    """

    widths: tuple[int, ...]
    middle: int
    attend: bool = False
    down: bool = False
    up: bool = False
    last: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, L, C] to [B, L', widths[-1]]."""
        if self.down:
            x = _halved(x, self._taps("down", 1))
        for i, width in enumerate(self.widths):
            last = self.last and i == len(self.widths) - 1
            x = ResConvBlock(self.middle, width, last, self.dtype, name=f"resnets.{i}")(x)
            if self.attend:
                head_dim = width // max(1, width // 32)
                x = Attention(head_dim, 1, dtype=self.dtype, name=f"attentions.{i}")(x)
        if self.up:
            x = _doubled(x, self._taps("up", 2)[::-1])
        return x

    def _taps(self, direction: str, scale: int) -> Array:
        start = lambda key, shape: jnp.asarray(scale * CUBIC, jnp.float32)  # noqa: E731
        taps = jax.lax.stop_gradient(param(self, f"{direction}.kernel", start, CUBIC.shape))
        return taps.astype(at_least_float32(self.dtype))


def _halved(x: Array, taps: Array) -> Array:
    """Filter each channel of x[B, L, C], with reflection at its ends, and keep every second value."""
    padded = jnp.pad(x, ((0, 0), (3, 3), (0, 0)), mode="reflect")
    return _filtered(padded, taps, x.shape[1] // 2, step=2)


def _doubled(x: Array, taps: Array) -> Array:
    """Filter each channel of x[B, L, C], with a zero after each value and reflection at its ends."""
    padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)), mode="reflect")
    # Every other tap meets a zero.
    even, odd = (_filtered(padded[:, start:], taps[start::2], x.shape[1]) for start in (0, 1))
    return jnp.stack([even, odd], axis=2).reshape(x.shape[0], -1, x.shape[2])


def _filtered(x: Array, taps: Array, length: int, step: int = 1) -> Array:
    """Cross-correlate each channel, as a sum of shifted products, which XLA fuses: see `efficientnet.Depthwise`."""
    y = jnp.zeros((x.shape[0], length, x.shape[2]), taps.dtype)
    for i in range(len(taps)):
        y = y + taps[i] * x[:, i::step][:, :length].astype(taps.dtype)
    return y.astype(x.dtype)


class DanceUNet(nn.Module):
    """U-Net for audio; features of the noise level are additional channels of its input.

    Attributes:
        widths: channels by level; every level except the first halves the axis, and so does the bottom.
        attention: levels with attention; the bottom always has it.
        features: number of features of the noise level.
        cos_first: order of these features, [cos, sin] or [sin, cos].
        out_channels: channels of the output; None: as many as x has.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, the features of the noise
            level and the output float32 at least.
    """

    widths: tuple[int, ...] = (32, 32, 64)
    attention: tuple[int, ...] = (2,)
    features: int = 64
    cos_first: bool = True
    out_channels: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise).

        Args:
            x: [B, L, C], L a multiple of 2^levels.
            noise: float[B], the network's noise input.
            cond: None or empty.
            train: no effect; there is no dropout.

        Returns:
            [B, L, out_channels].

        Raises:
            ValueError: there is a condition, or the length is no multiple of 2^levels.
        """
        if x.ndim != 3:
            raise ValueError(f"x must be [B, L, C], got shape {x.shape}")
        check_divisible(x.shape, 2 ** len(self.widths))
        check_cond(x, noise, cond, {})
        noise_features = Frequencies(1.0, False, self.cos_first, name="time_proj")(
            noise.astype(at_least_float32(self.dtype)), self.features
        )
        noise_features = jnp.broadcast_to(noise_features[:, None], (*x.shape[:2], self.features)).astype(self.dtype)
        h, kept = jnp.concatenate([x.astype(self.dtype), noise_features], axis=-1), []
        for level, width in enumerate(self.widths):
            h = self._level(
                f"down_blocks.{level}", (width,) * 3, width, attend=level in self.attention, down=level > 0
            )(h)
            kept.append(h)
        bottom = self.widths[-1]
        h = self._level("mid_block", (bottom,) * 6, bottom, attend=True, down=True, up=True)(h)
        outs = (x.shape[-1] if self.out_channels is None else self.out_channels, *self.widths[:-1])
        for level in reversed(range(len(self.widths))):
            attend, out = level in self.attention, outs[level]
            middle = out if attend else self.widths[level]
            h = jnp.concatenate([h, kept.pop()], axis=-1)
            name = f"up_blocks.{len(self.widths) - 1 - level}"
            h = self._level(name, (middle, middle, out), middle, attend=attend, up=level > 0, last=level == 0)(h)
        return h.astype(at_least_float32(self.dtype))

    def _level(self, name: str, widths: tuple[int, ...], middle: int, **options: Any) -> Level:
        return Level(widths, middle, dtype=self.dtype, name=name, **options)
