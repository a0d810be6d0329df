"""Layers of transformers over tokens [B, N, D]: norms, modulation, projections, positions, stacked layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.attention import split_heads
from jaxdiff.networks.initializers import kernel_init, param, zeros_init
from jaxdiff.networks.layers import Dense, at_least_float32, depth_to_space, per_channel, space_to_depth, stored
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.sharding import BATCH_AXES, constrain

Rotary = tuple[Array, Array]  # cosines and sines, [N, D / 2] each


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Normalize the last axis, without parameters (Ba et al. 2016, eq. 4), in float32 at least.

    Args:
        x: [..., D].
        eps: added to the variance.

    Returns:
        [..., D], in float32 or float64.
    """
    y = x.astype(at_least_float32(x.dtype))
    y = y - y.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
    """Layer norm with a learned affine map (Ba et al. 2016, eq. 4).

    Attributes:
        eps: added to the variance (torch's default is 1e-5, Linen's 1e-6).
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize x[..., D]."""
        scale = param(self, "scale", nn.initializers.ones_init(), x.shape[-1:])
        return _affine_norm(x, scale, param(self, "bias", zeros_init, x.shape[-1:]), eps=self.eps)


@partial(jax.jit, static_argnames="eps")
def _affine_norm(x: Array, scale: Array, bias: Array, *, eps: float) -> Array:
    y = layer_norm(x, eps)
    return (y * per_channel(y, scale.astype(y.dtype)) + per_channel(y, bias.astype(y.dtype))).astype(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm: division by the root mean square, with learned scales (Zhang and Sennrich 2019, eq. 4).

    Attributes:
        eps: added to the mean square.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize x[..., D]."""
        return _rms_norm(x, param(self, "scale", nn.initializers.ones_init(), x.shape[-1:]), eps=self.eps)


@partial(jax.jit, static_argnames="eps")
def _rms_norm(x: Array, scale: Array, *, eps: float) -> Array:
    y = x.astype(at_least_float32(x.dtype))
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * per_channel(y, scale.astype(y.dtype))).astype(x.dtype)


def dense(features: int, dtype, name: str, *, zero: bool = False, bias: bool = True) -> Dense:
    """Return a linear layer computed in `dtype`; with `zero`, its initial kernel is zero."""
    return Dense(features, bias, dtype, kernel_init=zeros_init if zero else kernel_init, name=name)


def qkv(
    x: Array, names: Sequence[str], *, num_heads: int, dtype: Any, bias: bool = True, norms: Sequence[str] = ()
) -> list[Array]:
    """Return queries, keys and values of tokens, by linear layers.

    Args:
        x: [B, N, D].
        names: of the three layers.
        num_heads: H, divides D.
        dtype: of the computation.
        bias: whether the layers have a bias.
        norms: names of the RMS norms of the queries and of the keys, over the features of each head; () for none.

    Returns:
        [q, k, v], each [B, N, H, D / H].
    """
    out = [split_heads(dense(x.shape[-1], dtype, name, bias=bias)(x), num_heads) for name in names]
    return [RMSNorm(name=name)(a) for name, a in zip(norms, out, strict=False)] + out[len(norms) :]


def modulations(emb: Array, count: int, dtype, name: str) -> list[Array]:
    """Return shifts, scales and gates, linear in the condition and zero at initialization (adaLN-Zero).

    Peebles and Xie 2022 (arXiv:2212.09748), sec. 3.2.

    Args:
        emb: [B, D], after SiLU.
        count: number of shifts, scales and gates together.
        dtype: of the computation.
        name: of the linear layer.

    Returns:
        count arrays [B, 1, D].
    """
    return jnp.split(dense(count * emb.shape[-1], dtype, name, zero=True)(emb)[:, None], count, axis=-1)


@partial(jax.jit, static_argnames="eps")
def modulated_norm(x: Array, shift: Array, scale: Array, eps: float = 1e-6) -> Array:
    """layer_norm(x) (1 + scale) + shift, of x[B, N, D] and [B, 1, D] each, in float32 at least; x's type."""
    return _modulated_norm(x, shift, scale, eps)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _modulated_norm(x: Array, shift: Array, scale: Array, eps: float) -> Array:
    y = layer_norm(x, eps)
    return (y * (1 + scale.astype(y.dtype)) + shift.astype(y.dtype)).astype(x.dtype)


@_modulated_norm.defjvp
def _modulated_norm_jvp(eps: float, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    x, shift, scale = primals
    dtype = at_least_float32(x.dtype)
    # With mean and variance apart, the sums over positions take y as it is computed: otherwise a GPU, whose kernel for
    # sums over features is another one, writes it in float32.
    y = x.astype(dtype)
    mean = y.mean(-1, keepdims=True)
    if x.dtype == jnp.bfloat16:  # E[x^2] - E[x]^2 loses digits where a deviation is less than x's own rounding
        var = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0)
    else:
        var = jnp.square(y - mean).mean(-1, keepdims=True)
    mean, rstd = stored(mean), stored(jax.lax.rsqrt(var + eps))
    y = (y - mean) * rstd
    dx, dshift, dscale = (d.astype(dtype) for d in tangents)
    dy = rstd * (dx - dx.mean(-1, keepdims=True) - y * (dx * y).mean(-1, keepdims=True))
    dy = dy * (1 + scale.astype(dtype)) + y * dscale + dshift
    return _modulated_norm(x, shift, scale, eps), dy.astype(x.dtype)


class FeedForward(nn.Module):
    """Linear, GELU, linear.

    Attributes:
        features: of the inner layer.
        exact: GELU by the error function; False: the tanh approximation (Hendrycks and Gimpel 2016, sec. 2).
        dtype: type of the computation.
    """

    features: int
    exact: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., D] to [..., D]."""
        h = constrain(dense(self.features, self.dtype, "net.0.proj")(x), BATCH_AXES, "sequence", "tensor")
        h = jax.nn.gelu(h, approximate=not self.exact)
        return dense(x.shape[-1], self.dtype, "net.2")(h)


def geglu(x: Array, dtype: Any, name: str) -> Array:
    """Apply a feed-forward layer whose inner layer is gated by a GELU (Shazeer 2020, eq. 5).

    Args:
        x: [..., D].
        dtype: of the computation.
        name: prefix of the names of the two linear layers.

    Returns:
        [..., D].
    """
    h = dense(8 * x.shape[-1], dtype, f"{name}.net.0.proj")(x)
    return dense(x.shape[-1], dtype, f"{name}.net.2")(_gated(h))


@jax.jit
def _gated(x: Array) -> Array:
    h, gate = jnp.split(x, 2, axis=-1)
    return h * jax.nn.gelu(gate, approximate=False)


def sines(positions: np.ndarray, dim: int, period: float = 10_000.0) -> tuple[np.ndarray, np.ndarray]:
    """Return sines and cosines of positions times period^(-2i / dim) (Vaswani et al. 2017, sec. 3.5).

    Args:
        positions: [N].
        dim: even.
        period: inverse of the lowest frequency in the limit of large dim.

    Returns:
        (sin, cos), float64[N, dim / 2].
    """
    if dim % 2:
        raise ValueError(f"a position's features come in pairs, got {dim} of them")
    angle = np.outer(positions, period ** (-np.arange(0, dim, 2) / dim))
    return np.sin(angle), np.cos(angle)


def grid_table(rows: np.ndarray, columns: np.ndarray, dim: int) -> Array:
    """Return sines and cosines of positions in the plane, first the column's, then the row's.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), app. D.4.

    Args:
        rows: [H], positions of the rows.
        columns: [W], positions of the columns.
        dim: features, a multiple of 4.

    Returns:
        [H, W, dim], in float64 if that is enabled, else float32.
    """
    # The program's constants are the two short tables, not their product.
    by_row, by_column = (jnp.asarray(np.concatenate(sines(p, dim // 2), axis=1)) for p in (rows, columns))
    shape = len(rows), len(columns), dim // 2
    parts = jnp.broadcast_to(by_column[None], shape), jnp.broadcast_to(by_row[:, None], shape)
    return jnp.concatenate(parts, axis=-1)


def rope_table(sizes: tuple[int, ...], dims: tuple[int, ...], period: float = 10_000.0) -> Rotary:
    """Return the angles of rotary position embeddings, with separate features for each axis (Su et al. 2021, eq. 15).

    Args:
        sizes: of the grid's axes; positions count from 0.
        dims: features of a head for each axis; even.
        period: inverse of the lowest frequency in the limit of large dim.

    Returns:
        the cosines and sines, [prod(sizes), sum(dims) / 2] each, the last axis of the grid running fastest.
    """

    def table(which: int) -> Array:
        tables = []
        for axis, (size, dim) in enumerate(zip(sizes, dims, strict=True)):
            angles = jnp.asarray(sines(np.arange(size), dim, period)[which])
            shape = [1] * len(sizes) + [dim // 2]
            shape[axis] = size
            tables.append(jnp.broadcast_to(angles.reshape(shape), (*sizes, dim // 2)))
        return jnp.concatenate(tables, axis=-1).reshape(-1, sum(dims) // 2)

    return table(1), table(0)


@jax.jit
def apply_rope(x: Array, by: Rotary) -> Array:
    """Rotate neighbouring pairs of features by the angles of their position.

    Args:
        x: [B, N, H, D], queries or keys.
        by: `rope_table` of the N positions.

    Returns:
        like x.
    """
    dtype = at_least_float32(x.dtype)
    cos, sin = (a.astype(dtype)[None, :, None] for a in by)
    pairs = x.astype(dtype).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def pack(x: Array, patch: int) -> Array:
    """Fold blocks into channels as `space_to_depth` does, but channel first, then position."""
    y = space_to_depth(x, patch)
    return y.reshape(*y.shape[:-1], -1, x.shape[-1]).swapaxes(-1, -2).reshape(y.shape)


def unpack(x: Array, patch: int) -> Array:
    """Invert `pack`."""
    y = x.reshape(*x.shape[:-1], -1, patch ** (x.ndim - 2)).swapaxes(-1, -2)
    return depth_to_space(y.reshape(x.shape), patch)


def scan_layers(
    block: type[nn.Module], layers: int, *, remat: Remat = "dots", unroll: int = 1, in_axes: Any = nn.broadcast
) -> type[nn.Module]:
    """Return equal blocks as one scanned module, so that compilation time does not grow with their number.

    Args:
        block: a module called as block(carry, *inputs) -> (carry, out).
        layers: number of blocks.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full". A loop
            stores values in memory, so that recomputing elementwise operations is faster than reading them.
        unroll: blocks per turn of the loop.
        in_axes: of the inputs, as for `nn.scan`: those that all blocks share, and axes along which each has its own.

    Returns:
        a module with the same fields and arguments, and parameters stacked along axis 0; its name must end in `.*`. It
        returns the last carry and the stacked outputs of the blocks.
    """
    return nn.scan(
        rematted(block, remat, in_loop=True),
        variable_axes={"params": 0, "intermediates": 0},  # the latter for `as_features`
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=layers,
        unroll=unroll,
        check_constancy_invariants=False,  # for which each block would be traced once more
    )


def check_patches(x: Array, patch: int) -> None:
    """Check that patches tile the images.

    Raises:
        ValueError: x is not [B, H, W, C] with H and W multiples of patch_size.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}")
    if any(size == 0 or size % patch for size in x.shape[1:3]):
        raise ValueError(f"height and width must be multiples of the patch's edge {patch}, got shape {x.shape}")
