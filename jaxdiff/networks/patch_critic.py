"""A critic of patches, for autoencoders."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.layers import Conv, GroupNorm, at_least_float32


class PatchCritic(nn.Module):
    """A convolutional network with a logit for each of many overlapping patches (Isola et al. 2017, PatchGAN).

    Layers have the reference's names and order. Group norms take the place of its batch norms, so that the critic has
    no state and an image's logits do not depend on the others of its batch.

    Attributes:
        channels: of the first layer; each further one has twice as many, up to eight times.
        layers: convolutions that halve the image.
        groups: of the norms; divides twice the channels.
        dtype: type of the computation; the logits are float32 at least.
    """

    channels: int = 64
    layers: int = 3
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        noise: Array | None = None,
        cond: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Evaluate D(x).

        Args:
            x: [B, H, W, C].
            noise: has no effect.
            cond: has no effect.
            train: has no effect.

        Returns:
            logits [B, h, w].

        Raises:
            ValueError: x is not [B, H, W, C], or too small for a patch.
        """
        least = 3 * 2**self.layers
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"a PatchCritic of {self.layers} layers takes images [B, H, W, C] of at least {least} x {least}, got "
                f"shape {x.shape}"
            )
        h = nn.leaky_relu(self._conv(self.channels, 0, bias=True)(x), 0.2)
        for i in range(1, self.layers + 1):
            width, stride = self.channels * min(2**i, 8), 2 if i < self.layers else 1
            h = self._conv(width, 3 * i - 1, stride=stride)(h)
            h = nn.leaky_relu(GroupNorm(self.groups, name=f"main.{3 * i}")(h), 0.2)
        y = self._conv(1, 3 * self.layers + 2, stride=1, bias=True)(h)
        return y[..., 0].astype(at_least_float32(self.dtype))

    def _conv(self, features: int, place: int, *, stride: int = 2, bias: bool = False) -> Conv:
        draw = nn.initializers.normal(0.02)
        return Conv(features, 4, stride, (1, 1), dtype=self.dtype, draw=draw, bias=bias, name=f"main.{place}")
