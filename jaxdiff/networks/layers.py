"""Group norm, linear layer, convolution and resampling for 1-, 2- and 3-D data, channels last.

What layers compute is within `jax.jit` here and in the other modules of networks: it is traced, differentiated and
lowered once for each shape, not once for each layer, which is most of the time before XLA compiles the program.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.bits import random_bits
from jaxdiff.networks.convolution import convolve
from jaxdiff.networks.initializers import kernel_init, param, zeros_init
from jaxdiff.networks.remat import costly
from jaxdiff.sharding import gathered_weight, platform, product

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "relu": nn.relu,
}


def at_least_float32(dtype) -> jnp.dtype:
    """Return the dtype for computations that need more than half precision: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def activation(name: str) -> Callable[[Array], Array]:
    """Return an activation function by name: "silu", "gelu" (by the error function), "mish" or "relu".

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def spatial(x: Array, y: Array) -> Array:
    """Reshape y[B, C] to broadcast against x[B, *spatial, C]."""
    return y.reshape(y.shape[0], *(1,) * (x.ndim - 2), y.shape[-1])


def per_channel(x: Array, y: Array) -> Array:
    """Reshape y[C], or a scalar, to broadcast against x[..., C]."""
    return y.reshape((1,) * (x.ndim - 1) + (-1,))


@jax.jit
def add_bias(x: Array, by: Array) -> Array:
    """Add a smaller array, e.g. a bias, in x's type.

    The cast follows the broadcast, so that the gradient's sum over all positions and devices is taken in the array's
    own type, not in half precision.
    """
    return x + jnp.broadcast_to(by, x.shape).astype(x.dtype)


def stored(x: Array) -> Array:
    """Return x; on a GPU, keep it and its gradient apart from what the compiler would fuse it with."""
    return jax.lax.optimization_barrier(x) if platform() == "gpu" else x


@jax.custom_jvp
def gradient_stored(x: Array) -> Array:
    """Return x; on a GPU, keep its gradient apart from what the compiler would fuse it with."""
    return x


gradient_stored.defjvp(lambda primals, tangents: (primals[0], stored(tangents[0])))


def concatenate_channels(x: Array, skip: Array) -> Array:
    """Concatenate x and a skip connection, [B, *spatial, C] and [B, *spatial, D]."""
    # Otherwise each kernel that reads them has a copy made for itself.
    return stored(jnp.concatenate([x, skip], axis=-1))


def group_norm(x: Array, gamma: Array, beta: Array, *, groups: int, eps: float) -> Array:
    """Normalize groups of channels (Wu and He 2018, eq. 1-3), in float32 at least.

    The sums run over the spatial axes of each channel, and are combined by group on [B, C] numbers. So no pass over
    the data needs a group axis, and XLA fuses the affine map with the next operation.

    Args:
        x: [B, *spatial, C].
        gamma: [B or 1, C], factor of the normalized x.
        beta: [B or 1, C], added to it.
        groups: number of groups; divides C.
        eps: added to the variance.

    Returns:
        like x.

    Raises:
        ValueError: groups does not divide C.
    """
    batch, channels = x.shape[0], x.shape[-1]
    if channels % groups:
        raise ValueError(f"groups must divide the channels, got {groups} groups for {channels} channels")
    axes, grouped = tuple(range(1, x.ndim - 1)), (batch, groups, channels // groups)
    y = x.astype(at_least_float32(x.dtype))
    if x.dtype == jnp.bfloat16:
        # It has fewer digits than E[x^2] - E[x]^2 loses: both sums take one pass over x, and one kernel combines them.
        sums = jnp.stack([y.sum(axes), jnp.square(y).sum(axes)]).reshape(2, *grouped).sum(3, keepdims=True)
        mu, square = sums / (math.prod(x.shape[1:]) // groups)
        var = jnp.maximum(square - jnp.square(mu), 0)
    else:
        # Squares are centred at a constant near the mean: E[x^2] - E[x]^2 loses digits when the mean is large.
        # This is exact for any constant, so derivatives of all orders are exact although the constant has none.
        mean = y.mean(axes)
        centre = jax.lax.stop_gradient(mean)
        var = jnp.square(y - spatial(x, centre)).mean(axes) - jnp.square(mean - centre)
        mean, var = mean.reshape(grouped), var.reshape(grouped)
        mu = mean.mean(2, keepdims=True)
        var = (var + jnp.square(mean - mu)).mean(2, keepdims=True)
    scale = jnp.broadcast_to(jax.lax.rsqrt(var + eps), grouped).reshape(batch, channels) * gamma
    mu = jnp.broadcast_to(mu, grouped).reshape(batch, channels)
    scale, shift = gradient_stored(scale), gradient_stored(beta - mu * scale)
    return (y * spatial(x, scale) + spatial(x, shift)).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group norm with a learned affine map and an optional scale and shift per example (FiLM).

    Attributes:
        groups: number of groups; divides the channels.
        eps: added to the variance (torch's default is 1e-5, TensorFlow's contrib and Ho et al. 2020: 1e-6).
    """

    groups: int = 32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        """Normalize x[B, *spatial, C]; scale and shift, [B, C], act as y (1 + scale) + shift."""
        gamma = param(self, "scale", nn.initializers.ones_init(), (x.shape[-1],))
        beta = param(self, "bias", zeros_init, (x.shape[-1],))
        film = () if scale is None or shift is None else (scale, shift)
        return _affine_group_norm(x, gamma, beta, *film, groups=self.groups, eps=self.eps)


@partial(jax.jit, static_argnames=("groups", "eps"))
def _affine_group_norm(
    x: Array, gamma: Array, beta: Array, scale: Array | None = None, shift: Array | None = None, **options: Any
) -> Array:
    dtype = at_least_float32(x.dtype)
    # As one array over the batch, so that its gradient is one sum.
    affine = jnp.stack([gamma.astype(dtype), beta.astype(dtype)])[:, None]
    gamma, beta = jnp.broadcast_to(affine, (2, x.shape[0], x.shape[-1]))
    if scale is not None and shift is not None:
        factor = 1 + scale.astype(dtype)
        gamma, beta = gamma * factor, beta * factor + shift.astype(dtype)
    return group_norm(x, gamma, beta, **options)


class Dense(nn.Module):
    """Linear layer on the last axis of x.

    Attributes:
        features: outputs.
        bias: whether there is a bias.
        dtype: type of the computation; the parameters are float32.
        kernel_init: (key, shape, dtype) -> initial kernel.
    """

    features: int
    bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable[..., Array] = kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., D] to [..., features]."""
        kernel = param(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product((*self.path, "kernel"), x, kernel, self.dtype)
        return costly(add_bias(y, param(self, "bias", zeros_init, (self.features,))) if self.bias else y)


class Conv(nn.Module):
    """Convolution over all spatial axes of x, with the same size and padding along each.

    Attributes:
        features: output channels.
        size: kernel size.
        stride: stride.
        pad: zeros before and after each axis; None is size // 2 on both sides, as usual in torch. (0, 1) is
            TensorFlow's SAME for an even axis, size 3 and stride 2.
        zero: initialize the kernel to zero.
        dtype: type of the computation; the parameters are float32.
        draw: (key, shape, dtype) -> initial kernel, unless `zero` is set.
        bias: whether there is a bias.
    """

    features: int
    size: int = 3
    stride: int = 1
    pad: tuple[int, int] | None = None
    zero: bool = False
    dtype: jnp.dtype = jnp.float32
    draw: Callable[..., Array] = kernel_init
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        """Convolve x[B, *spatial, C], and add emb[B, features] at all positions."""
        dims = x.ndim - 2
        pad = (self.size // 2,) * 2 if self.pad is None else self.pad
        shape = (self.size,) * dims + (x.shape[-1], self.features)
        kernel = param(self, "kernel", zeros_init if self.zero else self.draw, shape)
        kernel = gathered_weight((*self.path, "kernel"), kernel, self.dtype)
        x = x.astype(self.dtype)
        tiles = self.stride == self.size and pad == (0, 0)
        # Each value is in one window: a matrix product, which is partitioned better. But cuDNN adds the bias, too.
        if tiles and (self.size > 1 or platform() != "gpu"):
            x, kernel = space_to_depth(x, self.size), kernel.reshape(-1, self.features)
            y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        else:
            y = convolve(x, kernel, stride=self.stride, pad=pad)
        bias = param(self, "bias", zeros_init, (self.features,)) if self.bias else None
        if emb is None:
            return costly(y if bias is None else add_bias(y, bias))
        if bias is not None:
            dtype = np.promote_types(emb.dtype, bias.dtype)
            emb = emb.astype(dtype) + per_channel(emb, bias.astype(dtype))
        # One sum over positions is both gradients'. What it sums is kept apart, or it would be written in float32; and
        # so is y, since cuDNN adds arrays of y's shape only.
        return gradient_stored(add_bias(stored(costly(y)), spatial(y, gradient_stored(emb))))


class Dropout(nn.Module):
    """Dropout: set elements to zero at random, and scale the others to keep the mean (Srivastava et al. 2014, sec. 10).

    Attributes:
        rate: probability of zeroing an element, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool = True) -> Array:
        """Drop elements of x, of any shape, with the random key "dropout"; return x if not `train`."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"the rate of dropout must be in [0, 1), got {self.rate}")
        if not train or self.rate == 0:
            return x
        key, bound = self.make_rng("dropout"), jnp.uint32(round(self.rate * 2**32))
        drop = lambda x, *words: jnp.where(random_bits(words, x.shape) >= bound, x / (1 - self.rate), 0)  # noqa: E731
        # Where memory is the bound, the mask is drawn again for the gradient.
        drop = drop if platform() == "cpu" else jax.checkpoint(drop)
        return drop(x, *jax.random.key_data(key).ravel())


def upsample(x: Array, size: Sequence[int] | None = None) -> Array:
    """Resize every spatial axis to about twice its size by nearest-neighbour interpolation.

    Args:
        x: [B, *spatial, C].
        size: of the spatial axes; value i of m is value floor(i n / m) of n. None: twice the size.

    Returns:
        [B, *size, C].
    """
    size = [2 * n for n in x.shape[1:-1]] if size is None else size
    for axis, (n, m) in enumerate(zip(x.shape[1:-1], size, strict=True), 1):
        if 2 * n - 1 <= m <= 2 * n:  # x is half of that axis, rounded up: repetition, without a gather
            x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, m, axis=axis)
        else:
            x = jnp.take(x, np.arange(m) * n // m, axis)
    return x


def downsample(x: Array) -> Array:
    """Halve every spatial axis of x[B, *spatial, C], all even, by averaging blocks of two."""
    shape = [x.shape[0]]
    for size in x.shape[1:-1]:
        shape += [size // 2, 2]
    return x.reshape(*shape, x.shape[-1]).mean(tuple(range(2, len(shape), 2)))


class Downsample(nn.Module):
    """A convolution of stride 2, which halves every spatial axis; see `Conv` for the attributes."""

    features: int
    pad: tuple[int, int] = (1, 1)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, *spatial, C] to [B, *spatial/2, features]."""
        return Conv(self.features, stride=2, pad=self.pad, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """`upsample` and a convolution; see `Conv` for the attributes."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: Sequence[int] | None = None) -> Array:
        """Map [B, *spatial, C] to [B, *size, features]; see `upsample`."""
        return Conv(self.features, dtype=self.dtype, name="conv")(upsample(x, size))


def space_to_depth(x: Array, patch: int) -> Array:
    """Fold blocks of `patch` values along every spatial axis into channels (position first, then channel).

    Args:
        x: [B, *spatial, C], each spatial size a multiple of patch.
        patch: length of a block's edge.

    Returns:
        [B, *spatial / patch, patch^d C].
    """
    if patch == 1:
        return x
    dims = x.ndim - 2
    shape = [x.shape[0]]
    for size in x.shape[1:-1]:
        shape += [size // patch, patch]
    outer, inner = list(range(1, 2 * dims, 2)), list(range(2, 2 * dims + 1, 2))
    y = x.reshape(*shape, x.shape[-1]).transpose(0, *outer, *inner, 2 * dims + 1)
    return y.reshape(x.shape[0], *(size // patch for size in x.shape[1:-1]), patch**dims * x.shape[-1])


def depth_to_space(x: Array, patch: int) -> Array:
    """Invert `space_to_depth`.

    Args:
        x: [B, *spatial, patch^d C].
        patch: length of a block's edge.

    Returns:
        [B, *spatial * patch, C].
    """
    if patch == 1:
        return x
    dims = x.ndim - 2
    channels = x.shape[-1] // patch**dims
    axes: Sequence[int] = [0]
    for i in range(dims):
        axes = [*axes, 1 + i, 1 + dims + i]
    y = x.reshape(*x.shape[:-1], *(patch,) * dims, channels).transpose(*axes, 2 * dims + 1)
    return y.reshape(x.shape[0], *(size * patch for size in x.shape[1:-1]), channels)


def check_divisible(shape: Sequence[int], factor: int) -> None:
    """Check that a network's levels can halve the spatial sizes.

    Args:
        shape: [B, *spatial, C].
        factor: divisor of every spatial size.

    Raises:
        ValueError: a size is no multiple; the message names the nearest sizes that are.
    """
    for size in shape[1:-1]:
        if size % factor or size == 0:
            near = max(factor, size - size % factor)
            raise ValueError(
                f"every spatial size must be a multiple of {factor}, got {size} in "
                f"shape {tuple(shape)}; the nearest are {near} and {factor * math.ceil((size + 1) / factor)}"
            )
