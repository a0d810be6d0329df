"""The text-to-video network of ModelScope (Wang et al. 2023, arXiv:2308.06571, sec. 3.3), also Zeroscope's.

Parameters are named like those of diffusers' UNet3DConditionModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import Array

from jaxdiff.networks.unet import UNet
from jaxdiff.networks.video import Motion, TemporalConv, check_frames, fold, unfold

HEADS = 8  # heads of the first attention along time


class TextVideoUNet(UNet):
    """A U-Net for videos: convolutions along time after residual blocks, attention along time after transformers.

    Attributes, in addition to those of `UNet`, whose transformer must be set:
        frames: T. Parameters do not depend on it: `module.clone(frames=32)` uses the same.
        temporal_head_dim: features per head of the attention along time.
        temporal_dropout: rate before convolutions along time while training.
    """

    frames: int = 16
    temporal_head_dim: int = 64
    temporal_dropout: float = 0.1

    def __call__(self, x: Array, noise: Array, cond: Mapping[str, Any] | None = None, *, train: bool = False) -> Any:
        """Evaluate F(x, noise, cond) as `UNet` does, for x[B, T, H, W, C] and the conditions of `video.per_frame`."""
        check_frames(x, self.frames)
        return unfold(super().__call__(*fold(x, noise, cond), train=train), x)

    def _enter(self, x: Array, cond: Mapping[str, Any]) -> Array:
        width = HEADS * self.temporal_head_dim
        return self._along_time(super()._enter(x, cond), "transformer_in", width)

    def _block(self, h: Array, inputs: Any, name: str, **options: Any) -> Array:
        h = super()._block(h, inputs, name, **options)
        convs = TemporalConv(
            self._groups_of(h.shape[-1]), self.temporal_dropout, self.dtype, name=name.replace("resnets", "temp_convs")
        )
        return convs(self._video(h), train=inputs.train).reshape(h.shape)

    def _attention(self, h: Array, inputs: Any, place: tuple[str, int], level: int) -> Array:
        h, (name, index) = super()._attention(h, inputs, place, level), place
        return self._along_time(h, f"{name}.temp_attentions.{index}", h.shape[-1])

    def _along_time(self, h: Array, name: str, width: int) -> Array:
        motion = Motion(
            num_heads=width // self.temporal_head_dim,
            groups=self._groups_of(h.shape[-1]),
            remat=self.remat,
            dtype=self.dtype,
            width=width,
            positions=False,
            name=name,
        )
        return motion(self._video(h)).reshape(h.shape)

    def _video(self, h: Array) -> Array:
        return h.reshape(-1, self.frames, *h.shape[1:])
