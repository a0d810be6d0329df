"""LPIPS: a distance of images by the features of VGG16, weighted by what people see."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.layers import Conv, at_least_float32, per_channel

# Channels of the convolutions between two poolings (Simonyan and Zisserman 2015, table 1, D).
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and standard deviation of ImageNet's channels, of images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGG16Features(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015).

    Attributes:
        dtype: type of the computation.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Map normalized images [B, H, W, 3] to the activations before each pooling and at the end."""
        h, place, stages = x.astype(self.dtype), 0, []
        for number, widths in enumerate(STAGES):
            if number > 0:
                h, place = _max_pool(h), place + 1
            for width in widths:
                h, place = nn.relu(Conv(width, dtype=self.dtype, name=str(place))(h)), place + 2
            stages.append(h)
        return tuple(stages)


class LPIPS(nn.Module):
    """The learned distance of image patches (Zhang et al. 2018, arXiv:1801.03924, eq. 1), version 0.1 with VGG16.

    Attributes:
        dtype: type of the computation; the distances are float32 at least.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, a: Array, b: Array) -> Array:
        """Compare images.

        Args:
            a: [B, H, W, 3] in [-1, 1].
            b: like a.

        Returns:
            [B].

        Raises:
            ValueError: the shapes differ, are not [B, H, W, 3], or are too small for four poolings.
        """
        if a.ndim != 4 or a.shape != b.shape or a.shape[-1] != 3 or min(a.shape[1:3]) < 16:
            raise ValueError(f"LPIPS takes two batches [B, H, W, 3] of at least 16 x 16, got {a.shape} and {b.shape}")
        vgg = VGG16Features(self.dtype, name="features")
        total = jnp.zeros(a.shape[:1], at_least_float32(self.dtype))
        for i, (f, g) in enumerate(zip(vgg(_normalized(a)), vgg(_normalized(b)), strict=True)):
            weigh = Conv(1, size=1, dtype=total.dtype, bias=False, name=f"lin{i}.model.1")
            total = total + weigh(jnp.square(_unit(f) - _unit(g)))[..., 0].mean((1, 2))
        return total


def _normalized(x: Array) -> Array:
    return (x - per_channel(x, jnp.asarray(SHIFT, x.dtype))) / per_channel(x, jnp.asarray(SCALE, x.dtype))


def _unit(h: Array) -> Array:
    h = h.astype(at_least_float32(h.dtype))
    square = jnp.square(h).sum(-1, keepdims=True)
    # The root's slope at 0 is infinite: places without any activation are common after a ReLU.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return h / (length + 1e-10)


def _max_pool(x: Array) -> Array:
    """The largest of each 2 x 2 values; an odd axis loses its last."""
    height, width = (n // 2 for n in x.shape[1:3])
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(x.shape[0], height, 2, width, 2, x.shape[-1]).max((2, 4))
