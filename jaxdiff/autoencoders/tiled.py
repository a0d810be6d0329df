"""Large images in overlapping tiles, which one program processes in turn and blends."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.autoencoders.codec import Codec


def tiled(codec: Codec, *, tile: int = 64, overlap: int = 16) -> Codec:
    """Return an autoencoder that processes tiles, so that its memory does not grow with the image.

    Results for images of a single tile do not change. Means, decoded images and logarithms of stds are blended.

    Args:
        codec: the autoencoder.
        tile: edge of a tile, in latents; 64 latents of 8 pixels are 512 pixels.
        overlap: overlap of neighbouring tiles, in latents, 0..tile / 2.

    Returns:
        the autoencoder in tiles.

    Raises:
        ValueError: the overlap is out of range.
    """
    _check(tile, overlap)

    def encode(params, images):
        def moments(x):
            mean, std = codec.encode(params, x)
            return mean, jnp.log(std)

        mean, log_std = in_tiles(moments, images, tile=tile * codec.factor, overlap=overlap * codec.factor)
        return mean, jnp.exp(log_std)

    def decode(params, z):
        return in_tiles(lambda z: codec.decode(params, z), z, tile=tile, overlap=overlap)

    return codec._replace(encode=encode, decode=decode)


def in_tiles(run: Callable[[Array], Any], x: Array, *, tile: int, overlap: int) -> Any:
    """Compute run(x) tile by tile.

    All tiles have the same size, so that one scan processes them: the last tile of a row or column is moved inwards if
    it does not fit. Neighbouring tiles are blended linearly over their overlap. diffusers cuts the last tiles short
    instead, and blends twice where four tiles meet; elsewhere the results are equal.

    Args:
        run: [B, h, w, C] -> a tree of [B, r h, r w, any], with the same rational r for all leaves.
        x: [B, H, W, C].
        tile: edge of a tile, in positions of x; an integer after multiplication by r.
        overlap: overlap of neighbouring tiles, in positions of x, 0..tile / 2; an integer after multiplication by r.

    Returns:
        like run(x).

    Raises:
        ValueError: the overlap is out of range, or a tile does not begin at an integer position of the result.
    """
    _check(tile, overlap)
    size = min(tile, x.shape[1]), min(tile, x.shape[2])
    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((x.shape[0], *size, x.shape[3]), x.dtype))
    rate = Fraction(jax.tree.leaves(shapes)[0].shape[1], size[0])
    if any((rate * n).denominator > 1 for n in (*x.shape[1:3], tile, overlap)):
        raise ValueError(
            f"{x.shape[1]} x {x.shape[2]} in tiles of {tile} that overlap by {overlap}: all four must be multiples of "
            f"{rate.denominator}"
        )
    rows, columns = (_plan(n, tile, overlap, rate) for n in x.shape[1:3])

    def step(canvas: Any, place: tuple[Array, Array]) -> tuple[Any, None]:
        i, j = place
        y = run(jax.lax.dynamic_slice(x, (0, rows.start[i], columns.start[j], 0), (x.shape[0], *size, x.shape[3])))
        weight = rows.weight[i][None, :, None, None] * columns.weight[j][None, None, :, None]
        at = (0, rows.target[i], columns.target[j], 0)

        def add(total: Array, part: Array) -> Array:
            before = jax.lax.dynamic_slice(total, at, part.shape)
            return jax.lax.dynamic_update_slice(total, before + weight.astype(part.dtype) * part, at)

        return jax.tree.map(add, canvas, y), None

    sides = [int(rate * n) for n in x.shape[1:3]]
    canvas = jax.tree.map(lambda a: jnp.zeros((a.shape[0], *sides, a.shape[3]), a.dtype), shapes)
    places = jnp.indices((len(rows.start), len(columns.start)), jnp.int32).reshape(2, -1)
    return jax.lax.scan(step, canvas, (places[0], places[1]))[0]


class _Plan(NamedTuple):
    """Tiles along one axis.

    Attributes:
        start: int32[N], first position in x.
        target: int32[N], first position in the result.
        weight: float[N, size in the result], blending weights, which sum to 1 at every position of the result.
    """

    start: Array
    target: Array
    weight: Array


def _plan(length: int, tile: int, overlap: int, rate: Fraction) -> _Plan:
    step = tile - overlap
    number = 1 + max(0, math.ceil((length - tile) / step))
    seams = step * np.arange(number)  # where each tile begins to fade in
    start = np.minimum(seams, max(0, length - tile))
    target = start * rate.numerator // rate.denominator
    position = target[:, None] + np.arange(int(rate * min(tile, length)))[None]

    def fade_in(seam: np.ndarray) -> np.ndarray:
        """Return the rising weight of a tile that begins at `seam`, at each position."""
        into = position - (seam * rate.numerator // rate.denominator)[:, None]
        return np.clip(into / float(rate * overlap), 0, 1) if overlap else (into >= 0).astype(float)

    first, last = (np.arange(number) == k for k in (0, number - 1))
    weight = np.where(first[:, None], 1.0, fade_in(seams)) - np.where(last[:, None], 0.0, fade_in(seams + step))
    return _Plan(jnp.asarray(start, jnp.int32), jnp.asarray(target, jnp.int32), jnp.asarray(weight))


def _check(tile: int, overlap: int) -> None:
    if not 0 <= 2 * overlap <= tile or tile < 1:
        raise ValueError(f"the overlap must be in 0..{tile // 2}, half a tile, got {overlap} for tiles of {tile}")
