"""U-Nets of score-based models: NCSN++ with input and output skips (Song et al. 2021, arXiv:2011.13456, app. H).

Parameters are named like those of diffusers' UNet2DModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax import Array

from jaxdiff.networks.attention import Attention
from jaxdiff.networks.embed import Frequencies
from jaxdiff.networks.layers import GroupNorm, at_least_float32, concatenate_channels
from jaxdiff.networks.remat import rematted
from jaxdiff.networks.resblock import quarter
from jaxdiff.networks.song_layers import resample
from jaxdiff.networks.unet import UNet

TAPS, GROUPS = (1.0, 3.0, 3.0, 1.0), 32  # resampling filter; groups of the norms before attention


class ScoreUNet(UNet):
    """A U-Net whose noise input is sigma, the standard deviation of the noise, and whose output is divided by sigma.

    sigma must be positive, and so must a label that is a number. The random frequencies of log(sigma) are the parameter
    "time_proj", as in the checkpoints; their gradient is zero.

    Attributes, in addition to those of `UNet`:
        skips: every level of the encoder adds the downsampled input, by a filter and a convolution, and every level of
            the decoder adds to the output. Residual blocks resample with that filter, sums of attention are divided by
            `divide`, too, and a level of the decoder has one attention, at its end. groups must be None.
        scale: standard deviation of the frequencies.
    """

    skips: bool = True
    scale: float = 16.0

    def __call__(self, x: Array, noise: Array, cond: Mapping[str, Any] | None = None, *, train: bool = False) -> Any:
        """Evaluate F(x, noise, cond) as `UNet` does."""
        y = super().__call__(x, noise, cond, train=train)
        divisor = noise.astype(at_least_float32(self.dtype)).reshape(-1, *(1,) * (x.ndim - 1))
        return jax.tree.map(lambda a: a / divisor, y)

    def _noise_embedding(self) -> Callable[[Array, int], Array]:
        frequencies = Frequencies(self.scale, True, name="time_proj")
        return lambda noise, dim: frequencies(noise, 2 * dim)

    def _encode(
        self, x: Array, noise: Array, cond: Mapping[str, Any], train: bool, *, hint: Array | None = None
    ) -> tuple[Array, list[Array], Any]:
        if not self.skips:
            return super()._encode(x, noise, cond, train, hint=hint)
        inputs, picture = self._block_inputs(noise, cond, train), x.astype(self.dtype)
        h = self._enter(x, cond)
        kept = [h]
        for level, width in enumerate(self.widths):
            name = f"down_blocks.{level}"
            for i in range(self.blocks_at(level)):
                h = self._stage(h, inputs, (name, i), level=level, attend=level in self.attention)
                kept.append(h)
            if level < len(self.widths) - 1:
                h = self._filtered(h, inputs, f"{name}.resnet_down", direction="down")
                picture = resample(picture, TAPS, "down")
                h = h + self._conv(width, f"{name}.skip_conv", size=1)(picture)
                kept.append(h)
        return self._middle(h, inputs), kept, inputs

    def _decode(self, h: Array, skips: list[Array], inputs: Any, channels: int) -> Any:
        if not self.skips:
            return super()._decode(h, skips, inputs, channels)
        picture = None
        for level in reversed(range(len(self.widths))):
            name = f"up_blocks.{len(self.widths) - 1 - level}"
            for i in range(self.blocks_at(level) + 1):
                h = concatenate_channels(h, skips.pop())
                h = self._stage(h, inputs, (name, i), level=level, attend=False)
            if level in self.attention:
                h = self._attention(h, inputs, (name, 0), level)
            picture = None if picture is None else resample(picture, TAPS, "up")
            if level > 0:
                out = nn.silu(GroupNorm(quarter(h.shape[-1]), self.eps, name=f"{name}.skip_norm")(h))
                out = self._conv(channels, f"{name}.skip_conv")(out)
                picture = out if picture is None else picture + out
                h = self._filtered(h, inputs, f"{name}.resnet_up", direction="up")
        y: Any = self._output(h, channels)
        return y if picture is None else y + picture.astype(y.dtype)

    def _attend(self, name: str, level: int, *, identity: bool = False) -> Attention:
        if not self.skips or level == -1:
            return super()._attend(name, level, identity=identity)
        attention = rematted(Attention, self.remat)
        return attention(self.head_dim, GROUPS, self.eps, self.dtype, identity, divide=self.divide, name=name)

    def _filtered(self, h: Array, inputs: Any, name: str, *, direction: str) -> Array:
        return self._block(h, inputs, name, width=h.shape[-1], direction=direction, resample_filter=TAPS, shortcut=True)

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if self.next_noise or self.concat_noise:
            # A second noise level may be 0, of which there is no logarithm.
            raise ValueError("a ScoreUNet embeds the logarithm of one noise level: without next_noise and concat_noise")
        cond = super()._check(x, noise, cond)
        if self.skips and "features" in cond:
            raise ValueError("features of an adapter are for U-Nets without input skips")
        if self.skips and self.learned_variance:
            raise ValueError("with skips, which add up to the output, there can be no learned variance")
        if self.skips and self.groups is not None:
            raise ValueError(f"with skips the groups follow from the widths: groups must be None, got {self.groups}")
        # For fewer channels the reference has other groups, by an error in its formula.
        narrow = [self.widths[i] for level in self.attention for i in (max(level - 1, 0), level) if self.widths[i] < 64]
        if self.skips and narrow:
            raise ValueError(f"levels with attention, and the next finer ones, must be 64 wide at least, got {narrow}")
        return cond
