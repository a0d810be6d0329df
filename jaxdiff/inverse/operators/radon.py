"""Computed tomography: sums of a picture along parallel rays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from jaxdiff.inverse.operators.base import Operator, linear

__all__ = ["radon"]


def radon(angles: Array, size: int, channels: int = 1, *, iterations: int = 50) -> Operator:
    """The Radon transform: the picture is turned by each angle, by bilinear interpolation, and its columns are summed.

    Detector positions, angles and the axis of rotation, at index size // 2, are those of scikit-image's `radon` with
    `circle=True`. Outside of the picture is 0; its corners leave the detector.

    Args:
        angles: [K] degrees; may be traced.
        size: side of the square pictures in pixels, the unit of length.
        channels: of the pictures, each with a sinogram of its own.
        iterations: of the solve's conjugate residuals, as for `linear`.

    Returns:
        the operator, [B, size, size, channels] -> [B, size, K, channels]: detectors, angles.

    Raises:
        ValueError: angles that are not [K], or iterations < 1; from the operator, pictures of another shape.
    """
    if jnp.ndim(angles) != 1:
        raise ValueError(f"angles must have shape [K], got {list(jnp.shape(angles))}")

    def project(x: Array) -> Array:
        off = jnp.arange(size, dtype=x.dtype) - size // 2
        rows, columns = jnp.meshgrid(off, off, indexing="ij")

        def at(angle: Array) -> Array:
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            where = [cos * rows - sin * columns + size // 2, sin * rows + cos * columns + size // 2]
            turned = jax.vmap(lambda picture: map_coordinates(picture, where, order=1, mode="constant"))(x)
            return jnp.sum(turned, axis=1)

        # One angle at a time: all turned pictures at once are as large as the batch times the number of angles.
        return jax.lax.map(at, jnp.deg2rad(jnp.asarray(angles).astype(x.dtype)))

    def apply(x: Array) -> Array:
        if x.shape[1:] != (size, size, channels):
            raise ValueError(f"pictures must have shape [B, {size}, {size}, {channels}], got {x.shape}")
        flat = jnp.moveaxis(x, -1, 1).reshape(-1, size, size)
        return jnp.moveaxis(project(flat).reshape(-1, len(x), channels, size), (0, 2), (2, 3))

    return linear(apply, (size, size, channels), iterations=iterations)
