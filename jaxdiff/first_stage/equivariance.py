"""Turns and scales of latents and images alike, for equivariant autoencoders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["transform_pair"]


def transform_pair(key: Array, z: Array, x: Array) -> tuple[Array, Array]:
    """Scale and turn latents and their images by the same random transforms (Kouzelis et al. 2025, EQ-VAE, eq. 5).

    Each example has a scale between 1/2 and 1, uniform, of which a window of half the edge is kept at a random place,
    and then a random number of quarter turns. So all results have one shape: in the paper all of a batch have one
    scale, from 1/4, and nothing is cut off.

    Args:
        key: one key.
        z: latents [B, h, w, D].
        x: images [B, factor h, factor w, C].

    Returns:
        (latents [B, m, m, D], images [B, factor m, factor m, C]), where m is half of the shorter edge, rounded up.

    Raises:
        ValueError: the images are no multiple of the latents.
    """
    factor, rest = divmod(x.shape[1], z.shape[1])
    if rest or x.shape[:3] != (z.shape[0], factor * z.shape[1], factor * z.shape[2]):
        raise ValueError(f"images {x.shape} must have a multiple of the latents' edges, {z.shape}")
    edges = z.shape[1:3]
    window = -(-min(edges) // 2)
    scale_key, place_key, turn_key = jax.random.split(key, 3)
    batch, dtype = z.shape[0], x.dtype
    scale = jax.random.uniform(scale_key, (batch,), dtype, window / min(edges), 1.0)
    slack = scale[:, None] * jnp.asarray([edges], dtype) - window
    shift = -jax.random.uniform(place_key, (batch, 2), dtype) * slack  # of the scaled latents' corner
    turns = jax.random.randint(turn_key, (batch,), 0, 4)

    def of(array: Array, unit: int) -> Array:
        def moved(a: Array, scale: Array, shift: Array, turn: Array) -> Array:
            shape, both = (unit * window, unit * window, a.shape[-1]), jnp.stack([scale, scale])
            scaled = jax.image.scale_and_translate(a, shape, (0, 1), both, unit * shift, "linear")
            return _turned(scaled, turn)

        return jax.vmap(moved)(array, scale.astype(array.dtype), shift.astype(array.dtype), turns)

    return of(z, 1), of(x, factor)


def _turned(a: Array, turn: Array) -> Array:
    """`jnp.rot90` of a square, for a traced number of turns."""
    a = jnp.where(turn % 2 == 1, jnp.swapaxes(a, 0, 1), a)
    a = jnp.where((turn == 1) | (turn == 2), a[::-1], a)
    return jnp.where(turn >= 2, a[:, ::-1], a)
