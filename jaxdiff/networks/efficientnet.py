"""EfficientNet-Lite0, a feature network for distances between samples and real images."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.initializers import kernel_init, param, zeros_init
from jaxdiff.networks.layers import Conv, at_least_float32, per_channel

# (repeats, kernel size, stride of the first, expansion, channels) by stage (Tan and Le 2019, table 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPS = 1e-3  # of every batch norm


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019) with ReLU6 and without squeeze-and-excite, for inference.

    A Frechet distance between its features is not FID, which is defined with another network.

    Attributes:
        num_classes: number of logits.
        dtype: type of the computation; the results are float32 at least.
    """

    num_classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Classify images.

        Args:
            x: [B, H, W, 3] in [-1, 1]; the published weights were trained on 224 x 224.

        Returns:
            (logits [B, num_classes], features [B, 1280]).

        Raises:
            ValueError: x has another rank or number of channels.
        """
        logits, features, _ = self.layers(x)
        return logits, features

    def stages(self, x: Array) -> tuple[Array, ...]:
        """Return the last outputs at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution, of images as for `__call__`."""
        return self.layers(x)[2]

    @nn.compact
    def layers(self, x: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """Return what `__call__` and `stages` return."""
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"EfficientNet takes images [B, H, W, 3], got shape {x.shape}")
        h = ((127.5 * x + 0.5) / 128).astype(self.dtype)  # (pixel - 127) / 128, where x = pixel / 127.5 - 1
        stem = Conv(32, 3, 2, (0, 0), dtype=self.dtype, bias=False, name="conv_stem")
        h = jax.nn.relu6(BatchNorm(name="bn0")(stem(_padded(h, 3, 2))))
        number, stages = 0, []
        for repeats, size, stride, expansion, width in STAGES:
            if stride == 2:
                stages.append(h)
            for i in range(repeats):
                block = Block(width, expansion, size, stride if i == 0 else 1, name=f"blocks.{number}")
                h, number = block(h), number + 1
        stages.append(h)
        h = jax.nn.relu6(BatchNorm(name="bn1")(_conv(1280, "conv_head", self.dtype)(h)))
        features = h.astype(at_least_float32(self.dtype)).mean((1, 2))
        dense = nn.Dense(self.num_classes, dtype=features.dtype, kernel_init=kernel_init, name="fc")
        return dense(features), features, tuple(stage.astype(features.dtype) for stage in stages)


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project (Sandler et al. 2018, sec. 3.3).

    Attributes:
        features: output channels.
        expansion: width of the middle over that of the input.
        size: kernel size.
        stride: stride.
    """

    features: int
    expansion: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        h, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            h = jax.nn.relu6(BatchNorm(name="bn0")(_conv(width, "expand_conv", x.dtype)(h)))
        h = Depthwise(self.size, self.stride, name="depthwise_conv")(h)
        h = jax.nn.relu6(BatchNorm(name="bn1")(h))
        h = BatchNorm(name="bn2")(_conv(self.features, "project_conv", x.dtype)(h))
        return x + h if x.shape == h.shape else h


class BatchNorm(nn.Module):
    """Batch norm with the statistics of training (Ioffe and Szegedy 2015, algorithm 2)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize x[B, *spatial, C]."""

        def channels(name, init):
            return per_channel(x, param(self, name, init, (x.shape[-1],)).astype(at_least_float32(x.dtype)))

        ones = nn.initializers.ones_init()
        mean, var = channels("running_mean", zeros_init), channels("running_var", ones)
        scale = channels("scale", ones) * jax.lax.rsqrt(var + EPS)
        return (x.astype(scale.dtype) * scale + (channels("bias", zeros_init) - mean * scale)).astype(x.dtype)


class Depthwise(nn.Module):
    """Depthwise convolution as a sum of shifted products, which XLA fuses on a CPU, too.

    XLA's grouped convolution takes some 50 times as long there.

    Attributes:
        size: kernel size.
        stride: stride.
    """

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), C]."""
        kernel = param(self, "kernel", kernel_init, (self.size, self.size, 1, x.shape[-1])).astype(
            at_least_float32(x.dtype)
        )
        padded = _padded(x, self.size, self.stride)
        height, width = (-(-n // self.stride) for n in x.shape[1:3])
        y = jnp.zeros((x.shape[0], height, width, x.shape[-1]), kernel.dtype)
        for i in range(self.size):
            for j in range(self.size):
                shifted = padded[:, i :: self.stride, j :: self.stride][:, :height, :width]
                y = y + shifted.astype(y.dtype) * kernel[None, None, i, j]
        return y.astype(x.dtype)


def _conv(features: int, name: str, dtype: jnp.dtype) -> Conv:
    return Conv(features, size=1, dtype=dtype, bias=False, name=name)


def _padded(x: Array, size: int, stride: int) -> Array:
    """Pad as TensorFlow does: an odd number of zeros has one more at the end."""
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))
