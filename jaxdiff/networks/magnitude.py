"""Magnitude-preserving layers (Karras et al. 2024, arXiv:2312.02696, app. B)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import layers
from jaxdiff.networks.initializers import param, table_init
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.networks.remat import costly
from jaxdiff.sharding import gathered_weight


def normalize(x: Array, axes: tuple[int, ...], eps: float = 1e-4) -> Array:
    """Divide by the root mean square, in float32 at least (Karras et al. 2024, eq. 30, 53, 66).

    Args:
        x: any array.
        axes: of the mean.
        eps: added to the root.

    Returns:
        like x.
    """
    y = x.astype(at_least_float32(x.dtype))
    square = jnp.square(y).mean(axes, keepdims=True)
    # The gradient of the root is infinite at zero, where the quotient is zero.
    root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / (root + eps).astype(x.dtype)


def force_weight_norm(params: Any) -> Any:
    """Normalize every kernel to unit magnitude (Karras et al. 2024, eq. 66; sec. 2.3).

    Apply it after each optimizer step (`train.with_projection`); otherwise kernels grow, and the effective learning
    rate decays.

    Args:
        params: parameters of an `EDM2UNet`.

    Returns:
        the tree, with each leaf `kernel` normalized per output channel and other leaves unchanged.
    """

    def force(path: Any, leaf: Array) -> Array:
        return normalize(leaf, tuple(range(leaf.ndim - 1))) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(force, params)


def mp_silu(x: Array) -> Array:
    """SiLU divided by its root mean square on normal input (eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """(1 - t) a + t b, divided by its root mean square for independent a and b of unit magnitude (eq. 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Array, b: Array, t: float) -> Array:
    """Concatenate channels so that a contributes 1 - t and b contributes t, for any numbers of channels (eq. 103)."""
    n, m = a.shape[-1], b.shape[-1]
    scale = math.sqrt(n + m) / math.hypot(1 - t, t)
    return jnp.concatenate([a * (scale * (1 - t) / math.sqrt(n)), b * (scale * t / math.sqrt(m))], axis=-1)


class MPConv(nn.Module):
    """Convolution or linear layer whose weights are normalized per output channel (eq. 47 and 66).

    Attributes:
        features: output channels.
        size: kernel size; 0 is a linear layer on [B, C].
        dtype: type of the computation.
    """

    features: int
    size: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: Array | None = None) -> Array:
        """Map x[B, *spatial, C] to [B, *spatial, features]; gain is a learned scalar."""
        shape = (self.size,) * (x.ndim - 2 if self.size else 0) + (x.shape[-1], self.features)
        # Normalization keeps only the direction of an initial kernel, so uniform numbers do as well as normal ones.
        kernel = param(self, "kernel", table_init, shape)
        w = normalize(kernel.astype(at_least_float32(self.dtype)), tuple(range(kernel.ndim - 1)))
        w = w / math.sqrt(math.prod(shape[:-1]))
        if gain is not None:
            w = w * gain.astype(w.dtype)
        x, w = x.astype(self.dtype), gathered_weight((*self.path, "kernel"), w, self.dtype)
        return costly(layers.convolve(x, w, pad=(self.size // 2,) * 2) if self.size else x @ w)


class MPFourier(nn.Module):
    """Random Fourier features of unit magnitude (eq. 75), stored with the parameters and never trained.

    Attributes:
        features: number of features.
    """

    features: int

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        """Embed noise[B] in [B, features]."""
        freqs = param(self, "freqs", nn.initializers.normal(2 * math.pi), (self.features,))
        phases = param(self, "phases", nn.initializers.uniform(2 * math.pi), (self.features,))
        freqs, phases = (jax.lax.stop_gradient(a).astype(noise.dtype)[None] for a in (freqs, phases))
        return math.sqrt(2) * jnp.cos(noise[:, None] * freqs + phases)
