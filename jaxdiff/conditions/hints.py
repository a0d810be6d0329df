"""Hints made of pictures, for ControlNets and adapters: Canny's edges, low resolution, colours, depth; and of poses.

Pictures are float [B, H, W, C] in [-1, 1], hints [B, H, W, 3] in [0, 1], as networks of other projects take them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.resize import bicubic

__all__ = ["canny", "colors", "depth", "low_resolution", "pose"]

JOINTS = 18  # of OpenPose's bodies (COCO): nose, neck, right arm, left arm, right leg, left leg, eyes, ears
# Its limbs by the joints at their ends, in the order in which they are drawn.
LIMBS = np.array([
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
])  # fmt: skip
# Red, green and blue of the joints and, but for the last, of the limbs: the hues 0, 20, ..., 340 degrees.
HUES = np.clip(np.abs(np.arange(JOINTS)[:, None] / 3 - [3, 2, 4]) * [1, -1, -1] + [-1, 2, 2], 0, 1)
THICK, DIM = 4, 0.6  # a joint's radius and half a limb's width, in pixels; brightness of limbs


def canny(images: Array, low: float | Array = 0.1, high: float | Array = 0.2) -> Array:
    """Edges that are a pixel wide, 0 or 1 (Canny 1986), without blurring first.

    Of the brightness' gradient by Sobel's filters, what is largest across the edge remains; of that, what reaches
    `high`, and what reaches `low` and is connected to it.

    Args:
        images: [B, H, W, C] in [-1, 1].
        low: the gradient of an edge that goes on, where a step from black to white has 1.
        high: that of an edge that begins.
    """
    across, down = _gradients(images)
    steep = jnp.hypot(across, down)
    ridge = steep > 0
    # The direction across the edge, to a multiple of 45 degrees; of equals in a line the first remains.
    sector = jnp.round(jnp.arctan2(down, across) / (jnp.pi / 4)).astype(jnp.int32) % 4
    for i, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        largest = (steep > _shifted(steep, -y, -x)) & (steep >= _shifted(steep, y, x))
        ridge = ridge & (largest | (sector != i))
    weak = ridge & (steep >= low)

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = state
        more = jax.lax.reduce_window(found, False, jnp.logical_or, (1, 3, 3), (1, 1, 1), "SAME") & weak
        return more, jnp.any(more != found)

    found, _ = jax.lax.while_loop(lambda state: state[1], grow, (weak & (steep >= high), jnp.bool_(True)))
    return _grey(found.astype(images.dtype))


def low_resolution(images: Array, factor: int = 8) -> Array:
    """The means of blocks of pixels, enlarged by bicubic interpolation.

    Args:
        images: [B, H, W, C] in [-1, 1], C 1 or 3.
        factor: edge of a block in pixels.

    Raises:
        ValueError: it does not divide the sizes.
    """
    return _colored(jnp.clip(bicubic(_means(images, factor), (images.shape[1], images.shape[2])), -1, 1))


def colors(images: Array, factor: int = 64) -> Array:
    """The means of blocks of pixels, as blocks.

    Args:
        images: [B, H, W, C] in [-1, 1], C 1 or 3.
        factor: edge of a block in pixels.

    Raises:
        ValueError: it does not divide the sizes.
    """
    return _colored(jnp.repeat(jnp.repeat(_means(images, factor), factor, axis=1), factor, axis=2))


def depth(distance: Array) -> Array:
    """The inverse of a distance, scaled to [0, 1] in each picture: the nearest is white, as MiDaS' depth is.

    Args:
        distance: float [B, H, W], positive.
    """
    near = 1 / distance
    least, most = (f(near, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    spread = most - least
    return _grey((near - least) / jnp.where(spread == 0, 1, spread))


def pose(people: Array, size: tuple[int, int]) -> Array:
    """Bodies drawn as OpenPose's, on black (Cao et al. 2021, arXiv:1812.08008), as ControlNets of poses were trained.

    A limb is an ellipse between its joints, a joint a disc. Joints are drawn over limbs, and people over each other, in
    their order.

    Args:
        people: float [B, P, 18, 3]: x and y of a joint in pixels, and its confidence; of 0, it is not drawn.
        size: (height, width).
    """
    at, there = people[..., :2], people[..., 2] > 0
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(side, dtype=at.dtype) for side in size[::-1])), -1)[None, None, None]
    discs = jnp.sum(jnp.square(grid - at[:, :, :, None, None]), -1) <= THICK**2
    shapes = jnp.concatenate([_ellipses(grid, *(at[:, :, LIMBS[:, end], None, None] for end in (0, 1))), discs], 2)
    drawn = jnp.concatenate([there[:, :, LIMBS].all(-1), there], 2)[..., None, None]
    shapes = (shapes & drawn).reshape(len(people), -1, *size)
    top = jnp.max(jnp.where(shapes, 1 + jnp.arange(shapes.shape[1])[None, :, None, None], 0), axis=1, initial=0)
    body = np.concatenate([DIM * HUES[: len(LIMBS)], HUES])
    return jnp.asarray(np.concatenate([np.zeros((1, 3)), np.tile(body, (people.shape[1], 1))]), at.dtype)[top]


def _ellipses(grid: Array, first: Array, second: Array) -> Array:
    """Which pixels lie in the ellipses between points; of equal points there are none."""
    half, offset = (second - first) / 2, grid - (second + first) / 2
    length = jnp.sqrt(jnp.sum(jnp.square(half), -1))
    unit = half / jnp.where(length > 0, length, 1)[..., None]
    along = jnp.sum(offset * unit, -1)
    across = offset[..., 0] * unit[..., 1] - offset[..., 1] * unit[..., 0]
    return (length > 0) & (jnp.square(along * THICK) + jnp.square(across * length) <= jnp.square(length * THICK))


def _gradients(images: Array) -> tuple[Array, Array]:
    """Of the brightness in [0, 1], to the right and down; the border's pixels are repeated beyond it."""
    bright = (images.mean(-1) + 1) / 2
    padded = jnp.pad(bright, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth = lambda x, axis: (_part(x, 0, axis) + 2 * _part(x, 1, axis) + _part(x, 2, axis)) / 4  # noqa: E731
    change = lambda x, axis: _part(x, 2, axis) - _part(x, 0, axis)  # noqa: E731
    return change(smooth(padded, 1), 2), change(smooth(padded, 2), 1)


def _part(x: Array, start: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, start, start + x.shape[axis] - 2, axis=axis)


def _shifted(x: Array, y: int, across: int) -> Array:
    """The pixel so far down and to the right of each; 0 beyond the border."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 + y : 1 + y + x.shape[1], 1 + across : 1 + across + x.shape[2]]


def _means(images: Array, factor: int) -> Array:
    batch, height, width, channels = images.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"blocks of {factor} pixels must divide pictures of {height} x {width}")
    return images.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))


def _colored(images: Array) -> Array:
    """From [-1, 1] to [0, 1], grey in three channels."""
    return jnp.broadcast_to((images + 1) / 2, (*images.shape[:-1], 3))


def _grey(x: Array) -> Array:
    return jnp.broadcast_to(x[..., None], (*x.shape, 3))
