"""Networks for videos x[B, T, H, W, C]: layers along time, and image networks with such layers.

Space and time are factorized (Ho et al. 2022, arXiv:2204.03458, sec. 3): the image network's layers process frames as a
batch, and the layers between them work along time at each position. The latter are zero at initialization, so that with
an image network's parameters (`inflate`) the video network equals the image network on each frame. Parameters are named
like diffusers': motion modules (AnimateDiff, Guo et al. 2023, arXiv:2307.04725), temporal convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.attention import attend
from jaxdiff.networks.convolution import convolve
from jaxdiff.networks.dit import Block, DiT
from jaxdiff.networks.initializers import kernel_init, param, zeros_init
from jaxdiff.networks.layers import Dropout, GroupNorm, add_bias
from jaxdiff.networks.remat import Remat, costly
from jaxdiff.networks.tokens import (
    FeedForward,
    LayerNorm,
    dense,
    geglu,
    modulated_norm,
    modulations,
    qkv,
    scan_layers,
    sines,
)
from jaxdiff.networks.unet import UNet
from jaxdiff.sharding import gathered_weight

# Conditions with a value for each frame; the others apply to all frames of a video.
FRAMED = ("concat", "features", "residuals")


def per_frame(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an image network into a video network that processes each frame independently.

    Args:
        apply: (params, x[B, H, W, C], noise[B], cond, key=...) -> like x.

    Returns:
        apply(params, x, noise, cond=None, *, key=None) of x[B, T, H, W, C] and noise[B]. Conditions are per video,
        except cond["concat"], cond["features"] and cond["residuals"], which also have the axis T.
    """

    def video(params, x, noise, cond=None, *, key=None):
        return unfold(apply(params, *fold(x, noise, cond), key=key), x)

    return video


def fold(x: Array, noise: Array, cond: Mapping[str, Any] | None) -> tuple[Array, Array, dict[str, Any]]:
    """Make frames of videos examples of a batch.

    Args:
        x: [B, T, H, W, C].
        noise: [B].
        cond: entries of `FRAMED`, [B, T, ...], and others, [B, ...], which all frames of a video share.

    Returns:
        (x [B T, H, W, C], noise [B T], condition, leaves [B T, ...]).

    Raises:
        ValueError: x has another rank.
    """
    if x.ndim != 5:
        raise ValueError(f"x must be [B, T, H, W, C], got shape {x.shape}")
    frames = x.shape[1]

    def merge(a: Array) -> Array:
        return a.reshape(-1, *a.shape[2:])

    def repeat(a: Array) -> Array:
        return jnp.repeat(a, frames, axis=0)

    cond = {} if cond is None else cond
    conds = {name: jax.tree.map(merge if name in FRAMED else repeat, value) for name, value in cond.items()}
    return merge(x), repeat(noise), conds


def unfold(y: Any, x: Array) -> Any:
    """Make examples [B T, ...] frames of videos again, [B, T, ...], as many as x[B, T, ...] has."""
    return jax.tree.map(lambda a: a.reshape(*x.shape[:2], *a.shape[1:]), y)


def inflate(video: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """Insert an image network's parameters into those of a video network.

    Args:
        video: parameters of a video network.
        image: parameters of the image network that it extends.

    Returns:
        the video network's parameters, replaced by the image network's where that has them.

    Raises:
        ValueError: the video network has no place for one of the image network's.
    """

    def put(place: Any, new: Any, path: str) -> Any:
        if not isinstance(new, Mapping):
            if not hasattr(place, "shape") or place.shape != new.shape:
                raise ValueError(f"the video network has no place for {path[1:]} of shape {new.shape}")
            return new
        existing = place if isinstance(place, Mapping) else {}
        return dict(existing) | {name: put(existing.get(name), value, f"{path}/{name}") for name, value in new.items()}

    return put(video, image, "")


class TemporalConv(nn.Module):
    """Residual block of four convolutions along time, the last of which is zero at initialization.

    Attributes:
        groups: of the norms, whose means are over the video.
        dropout: rate before the last three convolutions while training.
        dtype: type of the computation.
    """

    groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Map [B, T, H, W, C] to the same shape."""
        h = x
        for i in range(1, 5):
            h = nn.silu(GroupNorm(self.groups, name=f"conv{i}.0")(h))
            if i > 1:
                h = Dropout(self.dropout, name=f"conv{i}.2")(h, train=train)
            h = _AlongTime(zero=i == 4, dtype=self.dtype, name=f"conv{i}.{2 if i == 1 else 3}")(h)
        return x + h


class _AlongTime(nn.Module):
    """Convolution of size 3 along time."""

    zero: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        init = zeros_init if self.zero else kernel_init
        kernel = param(self, "kernel", init, (3, 1, 1, channels, channels))
        bias = param(self, "bias", zeros_init, (channels,))
        # In two dimensions, with all positions in one axis, which is fast on every backend.
        flat = jnp.pad(x.astype(self.dtype).reshape(*x.shape[:2], -1, channels), ((0, 0), (1, 1), (0, 0), (0, 0)))
        y = convolve(flat, gathered_weight((*self.path, "kernel"), kernel, self.dtype)[:, 0], pad=(0, 0))
        return costly(add_bias(y.reshape(x.shape), bias))


def frame_positions(frames: int, dim: int) -> np.ndarray:
    """Return alternating sines and cosines of frame indices, float64[T, dim] (Vaswani et al. 2017, sec. 3.5)."""
    return np.stack(sines(np.arange(frames), dim), axis=-1).reshape(frames, dim)


class MotionBlock(nn.Module):
    """Two pre-norm attentions among frames and a gated feed-forward; only the attentions get positions.

    Attributes:
        num_heads: of both attentions; divides the width.
        dtype: type of the computation.
        positions: whether the attentions get positions.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    positions: bool = True

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        """Map frames x[B, T, D] to the same shape."""
        width = x.shape[-1]
        positions = jnp.asarray(frame_positions(x.shape[1], width), self.dtype)[None]
        for i in (1, 2):
            h = LayerNorm(name=f"norm{i}")(x)
            h = h + positions if self.positions else h
            names = [f"attn{i}.to_{a}" for a in "qkv"]
            q, k, v = qkv(h, names, num_heads=self.num_heads, dtype=self.dtype, bias=False)
            x = x + dense(width, self.dtype, f"attn{i}.to_out.0")(attend(q, k, v).reshape(x.shape))
        return x + geglu(LayerNorm(name="norm3")(x), self.dtype, "ff"), None


class Motion(nn.Module):
    """Residual transformer over the frames at each position, zero at initialization (Guo et al. 2023, sec. 4.2).

    Attributes:
        depth: blocks.
        num_heads: of the attentions; divides C.
        groups: of the group norm, whose means are over the video; its epsilon is 1e-6.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation.
        width: of the blocks; None: C.
        positions: see `MotionBlock`.
    """

    depth: int = 1
    num_heads: int = 8
    groups: int = 32
    remat: Remat = "dots"
    dtype: jnp.dtype = jnp.float32
    width: int | None = None
    positions: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, T, H, W, C] to the same shape.

        Raises:
            ValueError: num_heads does not divide the width.
        """
        channels = x.shape[-1]
        width = channels if self.width is None else self.width
        if width % self.num_heads:
            raise ValueError(f"heads must divide the channels, got {self.num_heads} heads for {width} channels")
        h = jnp.moveaxis(GroupNorm(self.groups, 1e-6, name="norm")(x), 1, 3)
        shape = h.shape  # [B, H, W, T, C]
        h = dense(width, self.dtype, "proj_in")(h.reshape(-1, *shape[3:]))
        block = scan_layers(MotionBlock, self.depth, remat=self.remat)
        h, _ = block(self.num_heads, self.dtype, self.positions, name="transformer_blocks.*")(h)
        h = dense(channels, self.dtype, "proj_out", zero=True)(h)
        return x + jnp.moveaxis(h.reshape(shape), 3, 1)


class VideoUNet(UNet):
    """A U-Net for videos: `UNet` on each frame, with layers along time after every residual block and its attention.

    Attributes, in addition to those of `UNet`:
        frames: T. Parameters do not depend on it: `module.clone(frames=32)` uses the same.
        motion_depth: blocks of each transformer along time.
        motion_num_heads: heads of their attentions.
        temporal_conv: convolutions along time before each of these transformers.
    """

    frames: int = 16
    motion_depth: int = 1
    motion_num_heads: int = 8
    temporal_conv: bool = False

    def __call__(self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Any:
        """Evaluate F(x, noise, cond) as `UNet` does, for x[B, T, H, W, C] and the conditions of `per_frame`."""
        check_frames(x, self.frames)
        return unfold(super().__call__(*fold(x, noise, cond), train=train), x)

    def _stage(self, h: Array, inputs: Any, place: tuple[str, int], **options: Any) -> Array:
        h = super()._stage(h, inputs, place, **options)
        name, index = place
        video = h.reshape(-1, self.frames, *h.shape[1:])
        if self.temporal_conv:
            convs = TemporalConv(
                self._groups(options["level"]), self.dropout, self.dtype, name=f"{name}.temp_convs.{index}"
            )
            video = convs(video, train=inputs.train)
        motion = Motion(
            self.motion_depth,
            self.motion_num_heads,
            self._groups(options["level"]),
            self.remat,
            self.dtype,
            name=f"{name}.motion_modules.{index}",
        )
        return motion(video).reshape(h.shape)


class SpaceTimeBlock(Block):
    """A DiT block over the positions of each frame, then one over the frames of each position.

    This is Latte's first variant (Ma et al. 2024, arXiv:2401.03048, sec. 3.1), except that frame indices are inputs of
    the attention only, so that the residual stream of an image network is not changed.

    Attributes, in addition to those of `dit.Block`:
        frames: T.
    """

    frames: int = 1

    @nn.compact
    def __call__(self, x: Array, inputs: Any) -> tuple[Array, Array | None]:
        """Map tokens x[B T, N, D] to the same shape, as `dit.Block` does."""
        x, own_emb = super().__call__(x, inputs)
        emb = inputs.emb if own_emb is None else own_emb
        block = TemporalBlock(self.num_heads, self.mlp_ratio, self.dtype, name="temporal")
        video = x.reshape(-1, self.frames, *x.shape[1:])
        return block(video, emb[:: self.frames]).reshape(x.shape), own_emb


class TemporalBlock(nn.Module):
    """Attention over the frames at each position and feed-forward, with gates that are zero at initialization.

    Attributes:
        num_heads: of the attention; divides the width.
        mlp_ratio: width of the feed-forward's inner layer over that of the tokens.
        dtype: type of the computation.
    """

    num_heads: int
    mlp_ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """Map tokens x[B, T, N, D], conditioned on emb[B, D], to the same shape."""
        batch, frames, _, width = x.shape
        shift, scale, gate, shift2, scale2, gate2 = modulations(
            nn.silu(emb).astype(self.dtype), 6, self.dtype, "norm1.linear"
        )
        flat = x.reshape(batch, -1, width)
        positions = jnp.asarray(frame_positions(frames, width), self.dtype)[None, :, None]
        h = (modulated_norm(flat, shift, scale).reshape(x.shape) + positions).swapaxes(1, 2).reshape(-1, frames, width)
        q, k, v = qkv(h, [f"attn1.to_{a}" for a in "qkv"], num_heads=self.num_heads, dtype=self.dtype)
        h = dense(width, self.dtype, "attn1.to_out.0")(attend(q, k, v).reshape(h.shape))
        flat = flat + gate * h.reshape(batch, -1, frames, width).swapaxes(1, 2).reshape(flat.shape)
        h = modulated_norm(flat, shift2, scale2)
        flat = flat + gate2 * FeedForward(self.mlp_ratio * width, dtype=self.dtype, name="ff")(h)
        return flat.reshape(x.shape)


class VideoDiT(DiT):
    """A transformer for videos: `DiT` on each frame, with a block along time after each of its blocks.

    Attributes, in addition to those of `DiT`:
        frames: T. Parameters do not depend on it: `module.clone(frames=32)` uses the same.
    """

    frames: int = 16

    def __call__(self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Any:
        """Evaluate F(x, noise, cond) as `DiT` does, for x[B, T, H, W, C]."""
        check_frames(x, self.frames)
        return unfold(super().__call__(*fold(x, noise, cond), train=train), x)

    def _stack(self, block: type[Block] = SpaceTimeBlock, **fields: Any) -> nn.Module:
        return super()._stack(block, frames=self.frames, **fields)


def check_frames(x: Array, frames: int) -> None:
    """Raise ValueError unless x is [B, T, H, W, C] with T = frames."""
    if x.ndim != 5 or x.shape[1] != frames:
        raise ValueError(f"x must be [B, T, H, W, C] with T = {frames}, got shape {x.shape}")
