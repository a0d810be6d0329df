"""Autoencoders as pure functions, and the affine map to latents of unit variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.layers import at_least_float32, check_divisible, per_channel
from jaxdiff.sharding import BATCH_AXES, constrain, num_batch_shards


class Codec(NamedTuple):
    """An autoencoder with a Gaussian posterior, as functions of its parameters.

    Attributes:
        encode: (params, images [B, *spatial, C] in [-1, 1]) -> (mean, std) of the posterior q(z | x), each
            [B, *spatial / factor, D]; z = mean + std * eps is a sample.
        decode: (params, z [B, *spatial, D]) -> images [B, *factor spatial, C], about in [-1, 1].
        factor: pixels per latent along every axis.
        channels: D.
        scale: factor of the diffusion model's latents, (z - shift) * scale; one number, or one per channel.
        shift: shift of these latents; one number, or one per channel.
    """

    encode: Callable[[Any, Array], tuple[Array, Array]]
    decode: Callable[[Any, Array], Array]
    factor: int
    channels: int
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def normalize(self, z: Array) -> Array:
        """Map the autoencoder's latents z to the diffusion model's, (z - shift) * scale."""
        return (z - _like(z, self.shift)) * _like(z, self.scale)

    def denormalize(self, z: Array) -> Array:
        """Invert `normalize`."""
        return z / _like(z, self.scale) + _like(z, self.shift)

    def posterior(self, params: Any, images: Array) -> tuple[Array, Array]:
        """Map images to the mean and std of the diffusion model's latents, float32 at least."""
        mean, std = self.encode(params, images)
        return self.normalize(mean), std * _like(std, self.scale)

    def decode_latents(self, params: Any, latents: Array) -> Array:
        """Map the diffusion model's latents to images, float32 at least; see `decode_singly`."""
        return decode_singly(lambda z: self.decode(params, self.denormalize(z)), latents)


def decode_singly(decode: Callable[[Array], Array], latents: Array) -> Array:
    """Decode one image of each device at a time, since the decoder's activations need many times the latents' memory.

    Args:
        decode: latents [N, ...] -> images [N, ...].
        latents: [B, ...].

    Returns:
        images [B, ...], float32 at least.
    """
    count, batch = num_batch_shards(), latents.shape[0]
    if count > 1 and batch % count:  # one device takes any number, also one that an exported program does not know
        count = 1
    # Each device has examples that follow each other, and goes through its own.
    turns = jnp.moveaxis(latents.reshape(count, batch // count, *latents.shape[1:]), 1, 0)
    images = jax.lax.map(lambda z: constrain(decode(constrain(z, BATCH_AXES)), BATCH_AXES), turns)
    images = jnp.moveaxis(images, 0, 1).reshape(batch, *images.shape[2:])
    return images.astype(at_least_float32(images.dtype))


def init(module: nn.Module, key: Array) -> dict:
    """Draw an autoencoder's parameters.

    Args:
        module: a `KLAutoencoder` or `VQAutoencoder`.
        key: a random key.

    Returns:
        a nested dict of float32 arrays.
    """
    # The network is only traced; compilation removes all but the parameters.
    image = jnp.zeros((1, module.factor, module.factor, module.in_channels), jnp.float32)
    return jax.jit(lambda key: module.init(key, image)["params"])(key)


def check_images(x: Array, channels: int, factor: int) -> None:
    """Check that an autoencoder can encode the images.

    Args:
        x: the images; must be [B, H, W, channels].
        channels: number of channels.
        factor: divisor of height and width.

    Raises:
        ValueError: the rank or the number of channels is wrong, or a size is no multiple of the factor.
    """
    check_channels(x, channels)
    check_divisible(x.shape, factor)


def check_channels(x: Array, channels: int) -> None:
    """Check that an array is [B, H, W, channels].

    Raises:
        ValueError: the rank or the number of channels is wrong.
    """
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"expected [B, H, W, {channels}], got shape {x.shape}")


def _like(z: Array, value: float | tuple[float, ...]) -> Array:
    return per_channel(z, jnp.asarray(value, z.dtype))
