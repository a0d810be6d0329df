"""Layers of EDM's U-Nets (Karras et al. 2022, arXiv:2206.00364, app. F.3), most of which EDM2 shares."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import layers
from jaxdiff.networks.attention import attend
from jaxdiff.networks.initializers import kernel_init, param
from jaxdiff.networks.layers import Conv, Dense, Dropout


def resample(x: Array, resample_filter: tuple[float, ...], direction: str | None) -> Array:
    """Double or halve every spatial axis with a filter.

    Args:
        x: [B, *spatial, C]; to be halved, axes must be even.
        resample_filter: the filter along an axis, an even number of values, normalized to sum to 1; (1, 1) averages
            pairs and repeats values.
        direction: "up", "down", or None for x itself.

    Returns:
        [B, *spatial', C].
    """
    pad = (len(resample_filter) - 1) // 2
    for axis in range(1, x.ndim - 1):
        if direction == "down":
            x = halve(_padded(x, axis, pad), resample_filter, axis)
        if direction == "up":
            x = _double(x, resample_filter, axis)
    return x


def halve(x: Array, resample_filter: tuple[float, ...], axis: int) -> Array:
    """Filter an axis at every other position, without padding."""
    span = x.shape[axis] - len(resample_filter) + 1
    parts = [
        jax.lax.slice_in_dim(x, k, k + span, 2, axis) * (tap / sum(resample_filter))
        for k, tap in enumerate(resample_filter)
    ]
    return sum(parts[1:], parts[0])


def _double(x: Array, resample_filter: tuple[float, ...], axis: int) -> Array:
    """Insert zeros between the values, then filter: each of the two phases uses every other tap."""
    pad, size = (len(resample_filter) - 1) // 2, x.shape[axis]
    x = _padded(x, axis, pad)
    phases = []
    for phase in range(2):
        first = (phase + pad) % 2
        parts = []
        for k in range(first, len(resample_filter), 2):
            start = pad + (phase + pad - k) // 2
            parts.append(
                jax.lax.slice_in_dim(x, start, start + size, 1, axis) * (2 * resample_filter[k] / sum(resample_filter))
            )
        phases.append(sum(parts[1:], parts[0]))
    shape = [*x.shape[:axis], 2 * size, *x.shape[axis + 1 :]]
    return jnp.stack(phases, axis + 1).reshape(shape)


def _padded(x: Array, axis: int, pad: int) -> Array:
    return jnp.pad(x, [(pad, pad) if a == axis else (0, 0) for a in range(x.ndim)])


def one_hot(label: Array, classes: int, dtype) -> Array:
    """Return one-hot vectors of labels: zeros for the null class `classes`, NaN for invalid labels.

    Args:
        label: int[B].
        classes: number of classes.
        dtype: dtype of the result.

    Returns:
        [B, classes].
    """
    known = (label >= 0) & (label <= classes)
    return jnp.where(known[:, None], jax.nn.one_hot(label, classes, dtype=dtype), jnp.asarray(jnp.nan, dtype))


def split_qkv(x: Array, num_heads: int) -> tuple[Array, Array, Array]:
    """Split [B, *spatial, 3 C] into q, k, v [B, N, H, C / H], which are interleaved within a head."""
    x = x.reshape(x.shape[0], -1, num_heads, x.shape[-1] // (3 * num_heads), 3)
    return x[..., 0], x[..., 1], x[..., 2]


def check_resample_filter(resample_filter: Sequence[float]) -> None:
    """Check that a filter does not shift its input.

    Raises:
        ValueError: resample_filter has an odd number of values.
    """
    if len(resample_filter) % 2:
        raise ValueError(f"resample_filter must be an even number of them, got {tuple(resample_filter)}")


def check_attention(sizes: Sequence[int], widths: Sequence[int], attention: Sequence[int], head_dim: int = 1) -> None:
    """Check that attention is at sizes of levels, and that heads divide the channels.

    Args:
        sizes: of the levels.
        widths: channels of the levels.
        attention: sizes with attention; the last level always has it.
        head_dim: channels per head.

    Raises:
        ValueError: no level has one of the sizes, or head_dim does not divide the channels of a level with attention.
    """
    if not set(attention) <= set(sizes):
        raise ValueError(f"attention names sizes out of {list(sizes)}, got {attention}")
    attending = {width for size, width in zip(sizes, widths, strict=True) if size in attention} | {widths[-1]}
    odd = sorted(width for width in attending if width % head_dim)
    if odd:
        raise ValueError(f"head_dim must divide the widths with attention, got {head_dim} for {odd}")


def scaled(factor: float) -> Callable[..., Array]:
    """Scale `kernel_init` by a factor."""
    return lambda *args: factor * kernel_init(*args)


class Block(nn.Module):
    """Residual block with optional resampling and self-attention (Karras et al. 2022, fig. 6 and app. F.3).

    Attributes:
        features: output channels.
        direction: "up" or "down" doubles or halves the spatial axes; None keeps them.
        num_heads: of the self-attention; 0 is none.
        resample_filter: filter of the resampling.
        adaptive: the embedding scales and shifts the second norm's output; False: it is added before that norm.
        project: the shortcut of a resampling block has a 1x1 convolution even if the channels do not change.
        skip_scale: factor of the sums of branches.
        gains: factors of the initial weights of a branch's last layer, and of the queries, keys and values.
        dropout: rate; 0 is off.
        eps: of the group norms.
        dtype: type of the computation.
    """

    features: int
    direction: str | None = None
    num_heads: int = 0
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    adaptive: bool = True
    project: bool = False
    skip_scale: float = 1.0
    gains: tuple[float, float] = (0.0, 1.0)
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """Map x[B, *spatial, C] to [B, *spatial', features]; emb[B, E] is the embedding after its SiLU."""
        last, attention = map(scaled, self.gains)
        h = nn.silu(norm("norm0", x, self.eps)(x))
        width = self.features * (2 if self.adaptive else 1)
        emb = Dense(width, dtype=emb.dtype, name="affine")(emb)
        h = resample(h, self.resample_filter, self.direction)
        h = self._conv("conv0")(h, None if self.adaptive else emb)
        h = nn.silu(norm("norm1", h, self.eps)(h, *(jnp.split(emb, 2, axis=-1) if self.adaptive else ())))
        if self.dropout:
            h = Dropout(self.dropout, name="dropout")(h)
        h = self._conv("conv1", draw=last)(h)

        changes = x.shape[-1] != self.features
        x = resample(x, self.resample_filter, self.direction)
        if changes or (self.direction is not None and self.project):
            x = self._conv("skip", size=1)(x)
        x = (x + h) * self.skip_scale
        if not self.num_heads:
            return x
        qkv = self._conv("qkv", 3 * self.features, size=1, draw=attention)(norm("norm2", x, self.eps)(x))
        y = attend(*split_qkv(qkv, self.num_heads)).reshape(x.shape)
        return (x + self._conv("proj", size=1, draw=last)(y)) * self.skip_scale

    def _conv(self, name: str, features: int | None = None, **options) -> Conv:
        return Conv(self.features if features is None else features, dtype=self.dtype, name=name, **options)


def norm(name: str, x: Array, eps: float) -> layers.GroupNorm:
    """Return a group norm for x, with at least four channels per group."""
    return layers.GroupNorm(min(32, x.shape[-1] // 4), eps, name=name)


class Frequencies(nn.Module):
    """Random Fourier features [sin, cos], whose frequencies are stored with the parameters and never trained.

    Attributes:
        scale: standard deviation of the frequencies, in cycles per unit of noise.
    """

    scale: float = 16.0

    @nn.compact
    def __call__(self, noise: Array, dim: int) -> Array:
        """Embed noise[B] in [B, dim], dim even."""
        freqs = param(self, "freqs", nn.initializers.normal(self.scale), (dim // 2,))
        freqs = jax.lax.stop_gradient(freqs).astype(noise.dtype)
        angle = noise[:, None] * (2 * jnp.pi * freqs)[None]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
