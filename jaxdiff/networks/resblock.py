"""The residual block of U-Nets, conditioned on the embedding of the noise level."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import layers
from jaxdiff.networks.layers import Conv, Dense, Dropout, GroupNorm, activation
from jaxdiff.networks.song_layers import resample
from jaxdiff.sharding import BATCH_AXES, check_rows_or_features, constrain, constrain_tokens


class ResBlock(nn.Module):
    """Residual block: norm, activation, (resample,) conv, embedding, norm, activation, dropout, conv.

    Attributes:
        features: output channels.
        scale_shift: the embedding scales and shifts the second norm's output (Dhariwal and Nichol 2021, eq. 3);
            False: it is added before that norm.
        resample: "up" or "down" doubles or halves the spatial axes in both branches; None keeps them.
        dropout: rate; 0 is off.
        groups: of the group norms; None: a quarter of the norm's channels, 32 at most (Song et al. 2021).
        eps: of the group norms.
        dtype: type of the computation.
        act: the activation; see `layers.activation`.
        divide: divisor of the sum of both branches.
        resample_filter: filter for resampling, see `song_layers.resample`; None: average, repetition.
        shortcut: a convolution of size 1 in the shortcut even if the number of channels does not change.
    """

    features: int
    scale_shift: bool = False
    resample: str | None = None
    dropout: float = 0.0
    groups: int | None = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    act: str = "silu"
    divide: float = 1.0
    resample_filter: tuple[float, ...] | None = None
    shortcut: bool = False

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """Map x[B, *spatial, C] to [B, *spatial', features]; emb[B, E] is the embedding after its activation."""
        x = constrain_tokens(x)
        check_rows_or_features()
        act = activation(self.act)
        h = act(self._norm("norm1", x.shape[-1])(x))
        if self.resample is not None:
            h, x = self._resampled(h), self._resampled(x)
        width = self.features * (2 if self.scale_shift else 1)
        emb = Dense(width, dtype=emb.dtype, name="time_emb_proj")(emb)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h, None if self.scale_shift else emb)
        h = constrain(h, BATCH_AXES, "sequence", *(None,) * (h.ndim - 3), "tensor")
        h = act(self._norm("norm2", self.features)(h, *(jnp.split(emb, 2, axis=-1) if self.scale_shift else ())))
        if self.dropout:
            h = Dropout(self.dropout, name="dropout")(h)
        h = Conv(self.features, zero=True, dtype=self.dtype, name="conv2")(h)
        if self.shortcut or x.shape[-1] != self.features:
            x = Conv(self.features, size=1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h if self.divide == 1 else (x + h) / self.divide

    def _norm(self, name: str, channels: int) -> GroupNorm:
        return GroupNorm(quarter(channels) if self.groups is None else self.groups, self.eps, name=name)

    def _resampled(self, x: Array) -> Array:
        if self.resample_filter is not None:
            return resample(x, self.resample_filter, self.resample)
        return layers.upsample(x) if self.resample == "up" else layers.downsample(x)


def quarter(channels: int) -> int:
    """The groups of the score networks' norms (Song et al. 2021): a quarter of the channels, 32 at most."""
    return min(channels // 4, 32)
