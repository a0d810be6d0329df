"""T2I-Adapters: features of an image, which steer a U-Net's encoder (Mou et al. 2023, arXiv:2302.08453).

They depend neither on x nor on the noise level, so that they are computed once per picture:

    features = adapter(params, hint)            # outside of the sampler
    F = unet(unet_params, x, noise, {..., "features": features})

Parameters are named like those of diffusers' T2IAdapter; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import check_spatial
from jaxdiff.networks.controlnet import ControlScale, scale_residuals
from jaxdiff.networks.layers import Conv, check_divisible, downsample, space_to_depth
from jaxdiff.networks.unet import UNet

__all__ = ["T2IAdapter", "adapted", "adapter_of", "add_features"]


class T2IAdapter(nn.Module):
    """Features of an image, one array for each level of a U-Net and, with more widths than levels, for its bottom.

    Attributes:
        widths: channels of the features, those of the U-Net.
        num_blocks: residual blocks of a level.
        factor: edge of the blocks that are folded into channels at the input.
        kind: "full"; "xl", whose third level alone has half the size of the one before; or "light", of a quarter of
            the channels, which has one level more than widths.
        zero: the features start at zero, so that a new adapter changes nothing.
        dtype: type of the computation; the parameters are float32.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    num_blocks: int = 2
    factor: int = 8
    kind: Literal["full", "xl", "light"] = "full"
    zero: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hint: Array) -> tuple[Array, ...]:
        """Compute the features.

        Args:
            hint: [B, *spatial, C], the picture; each size a multiple of factor and of two for each halving.

        Returns:
            arrays [B, *spatial / (factor 2^level), width], for cond["features"].

        Raises:
            ValueError: a size can't be divided, or the kind is unknown.
        """
        if self.kind not in ("full", "xl", "light"):
            raise ValueError(f"kind must be 'full', 'xl' or 'light', got {self.kind!r}")
        check_spatial(hint)
        widths = (*self.widths, self.widths[-1]) if self.kind == "light" else self.widths
        halved = [level == 2 if self.kind == "xl" else level > 0 for level in range(len(widths))]
        check_divisible(hint.shape, self.factor * 2 ** sum(halved))
        h = _unshuffled(hint.astype(self.dtype), self.factor)
        if self.kind != "light":
            h = self._conv(widths[0], "adapter.conv_in")(h)
        features = []
        for level, width in enumerate(widths):
            h = downsample(h) if halved[level] else h
            h = (self._light if self.kind == "light" else self._full)(h, width, f"adapter.body.{level}")
            features.append(h)
        if self.zero:
            features = [self._conv(f.shape[-1], f"zero.{i}", size=1, zero=True)(f) for i, f in enumerate(features)]
        return tuple(features)

    def _full(self, h: Array, width: int, name: str) -> Array:
        if h.shape[-1] != width:
            h = self._conv(width, f"{name}.in_conv", size=1)(h)
        for i in range(self.num_blocks):
            h = self._block(h, f"{name}.resnets.{i}", size=1)
        return h

    def _light(self, h: Array, width: int, name: str) -> Array:
        h = self._conv(width // 4, f"{name}.in_conv", size=1)(h)
        for i in range(self.num_blocks):
            h = self._block(h, f"{name}.resnets.{i}", size=3)
        return self._conv(width, f"{name}.out_conv", size=1)(h)

    def _block(self, h: Array, name: str, *, size: int) -> Array:
        y = nn.relu(self._conv(h.shape[-1], f"{name}.block1")(h))
        return h + self._conv(h.shape[-1], f"{name}.block2", size=size)(y)

    def _conv(self, features: int, name: str, **options: Any) -> Conv:
        return Conv(features, dtype=self.dtype, name=name, **options)


def adapter_of(unet: UNet, *, num_blocks: int = 2) -> T2IAdapter:
    """Make a new adapter for a U-Net: its features are zero at first, and its hints have the samples' size.

    Args:
        unet: the U-Net.
        num_blocks: residual blocks of a level.
    """
    return T2IAdapter(unet.widths, num_blocks, unet.patch_size, zero=True, dtype=unet.dtype)


def adapted(unet: Callable[..., Any], scale: ControlScale = 1.0) -> Callable[..., Any]:
    """Return a U-Net that takes cond["features"] at a scale.

    Args:
        unet: its apply.
        scale: factor of the features: one number, or one per feature; 0 is off. A scale that follows the noise level is
            a function of the network's noise input, noise[B] -> a number or [B].

    Returns:
        apply(params, x, noise, cond, *, key=None).

    Raises:
        ValueError: when apply is called, another number of scales.
    """

    @wraps(unet)
    def apply(params, x, noise, cond, *, key=None):
        features = scale_residuals(cond["features"], scale, noise)
        return unet(params, x, noise, {**cond, "features": features}, key=key)

    return apply


def add_features(features: Sequence[Sequence[Array]], scales: Sequence[float | Array] | None = None) -> tuple:
    """Add the features of several adapters of a U-Net.

    Args:
        features: of each adapter.
        scales: a number for each; None: 1.

    Returns:
        the features, for cond["features"].

    Raises:
        ValueError: there are none, or not a scale for each.
    """
    scales = (1.0,) * len(features) if scales is None else scales
    if not features or len(scales) != len(features):
        raise ValueError(f"features need a scale for each adapter, got {len(features)} and {len(scales)} scales")
    scaled = [[f * jnp.asarray(s, f.dtype) for f in each] for each, s in zip(features, scales, strict=True)]
    return tuple(sum(arrays[1:], arrays[0]) for arrays in zip(*scaled, strict=True))


def _unshuffled(x: Array, factor: int) -> Array:
    """Fold blocks into channels in the reference's order: channel first, then position."""
    y = space_to_depth(x, factor)
    blocks = y.reshape(*y.shape[:-1], -1, x.shape[-1])
    return jnp.swapaxes(blocks, -1, -2).reshape(y.shape)
