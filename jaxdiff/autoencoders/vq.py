"""The autoencoder with a codebook (van den Oord et al. 2017; Esser et al. 2021): every latent is one of K vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from jaxdiff.autoencoders.blocks import Decoder, Encoder
from jaxdiff.autoencoders.codec import check_channels, check_images, decode_singly
from jaxdiff.networks.initializers import param, unit_uniform
from jaxdiff.networks.layers import Conv, at_least_float32, per_channel


class Quantized(NamedTuple):
    """Latents on the codebook.

    Attributes:
        latents: [..., D], the codes; gradients flow to the unquantized latents.
        codes: [..., D], the codes; gradients flow to the codebook.
        indices: int32[...], indices of the codes, 0..K - 1.
    """

    latents: Array
    codes: Array
    indices: Array


def nearest(codebook: Array, z: Array) -> Array:
    """Return the index of the code nearest to each latent (van den Oord et al. 2017, eq. 1).

    Args:
        codebook: [K, D].
        z: [..., D].

    Returns:
        int32[...].
    """
    dtype = at_least_float32(z.dtype)
    codebook, z = codebook.astype(dtype), z.astype(dtype)
    # |z - e|^2 without |z|^2, which is the same for all codes. At the default precision of matrix products on TPUs and
    # GPUs the nearest code could be wrong.
    products = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
    squares = per_channel(z, jnp.square(codebook).sum(1))
    return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)


def quantize(codebook: Array, z: Array) -> Quantized:
    """Replace latents by their nearest codes, with a straight-through gradient (ibid., sec. 3.2).

    Args:
        codebook: [K, D].
        z: [..., D].

    Returns:
        the codes.
    """
    indices = nearest(codebook, z)
    codes = codebook.astype(z.dtype)[indices]
    return Quantized(z + stop_gradient(codes - z), codes, indices)


def codebook_loss(z: Array, codes: Array) -> Array:
    """Return the mean of |sg(z) - e|^2, which moves the codes to the latents.

    van den Oord et al. 2017 (arXiv:1711.00937), eq. 3, second term.

    Args:
        z: [..., D], the encoder's latents.
        codes: [..., D], their `Quantized.codes`.

    Returns:
        a scalar.
    """
    return jnp.square(stop_gradient(z) - codes).mean()


def commitment_loss(z: Array, codes: Array) -> Array:
    """Return the mean of |z - sg(e)|^2, which moves the latents to the codes (ibid., third term, without beta = 0.25).

    Args:
        z: [..., D], the encoder's latents.
        codes: [..., D], their `Quantized.codes`.

    Returns:
        a scalar.
    """
    return jnp.square(z - stop_gradient(codes)).mean()


class VQAutoencoder(nn.Module):
    """Convolutional autoencoder with a codebook (Esser et al. 2021; Rombach et al. 2022, app. G).

    Attributes:
        in_channels: channels of the images.
        out_channels: channels of the decoded images.
        latent_channels: channels of the encoder's output and of the decoder's input.
        codes: K, the number of codes.
        code_dim: D, the length of a code.
        widths: channels by level, the finest first; each further level halves the image.
        num_blocks: residual blocks per level in the encoder; the decoder has one more.
        attention: levels with attention after each residual block.
        mid_attention: attention between the two blocks at the bottom.
        groups: groups of the norms; divides all widths.
        dtype: type of the computation; parameters are float32, latents and images float32 at least.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 3
    codes: int = 8192
    code_dim: int = 3
    widths: tuple[int, ...] = (128, 256, 512)
    num_blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels per latent along an axis."""
        return 2 ** (len(self.widths) - 1)

    def setup(self):
        layout = (self.widths, self.num_blocks, self.mid_attention, self.groups, self.dtype, self.attention)
        self.encoder = Encoder(self.latent_channels, *layout)
        self.decoder = Decoder(self.out_channels, *layout)
        self.quant_conv = Conv(self.code_dim, size=1, dtype=self.dtype)
        self.post_quant_conv = Conv(self.latent_channels, size=1, dtype=self.dtype)
        self.codebook = Codebook(self.codes, self.code_dim, name="quantize.embedding")

    def encode(self, x: Array) -> Array:
        """Map images [B, H, W, C] in [-1, 1] to unquantized latents [B, H / factor, W / factor, D].

        Raises:
            ValueError: the rank or the number of channels is wrong, or a size is no multiple of the factor.
        """
        check_images(x, self.in_channels, self.factor)
        return self.quant_conv(self.encoder(x)).astype(at_least_float32(self.dtype))

    def quantize(self, z: Array) -> Quantized:
        """Replace latents [B, h, w, D] by their nearest codes."""
        check_channels(z, self.code_dim)
        return quantize(self.codebook(), z)

    def lookup(self, indices: Array) -> Array:
        """Return the codes [..., D] of indices int[...]; NaN outside 0..K - 1, since a compiled program can't raise."""
        # Negative indices would count from the end, so they are moved out of range.
        indices = jnp.where(indices < 0, self.codes, indices)
        return jnp.take(self.codebook(), indices, axis=0, mode="fill", fill_value=jnp.nan).astype(
            at_least_float32(self.dtype)
        )

    def decode(self, z: Array) -> Array:
        """Quantize latents [B, h, w, D], and map them to images [B, factor h, factor w, out_channels]."""
        z = self.post_quant_conv(self.quantize(z).latents)
        return self.decoder(z).astype(at_least_float32(self.dtype))

    def __call__(self, x: Array) -> Array:
        """Encode, quantize and decode images."""
        return self.decode(self.encode(x))


class Codebook(nn.Module):
    """A table [codes, dim] with small initial values, so that all codes are near the first latents."""

    codes: int
    dim: int

    @nn.compact
    def __call__(self) -> Array:
        """Return the table."""

        def draw(key, shape, dtype=jnp.float32):
            return unit_uniform(key, shape, dtype) / self.codes

        return param(self, "embedding", draw, (self.codes, self.dim))


class VQCodec(NamedTuple):
    """An autoencoder with a codebook, as functions of its parameters.

    Attributes:
        encode: (params, images [B, *spatial, C] in [-1, 1]) -> unquantized latents [B, *spatial / factor, D].
        quantize: (params, latents [B, *spatial, D]) -> `Quantized`.
        lookup: (params, indices int[...]) -> codes [..., D].
        decode: (params, latents [B, *spatial, D]) -> images; quantizes the latents, which does not change codes.
        factor: pixels per latent along every axis.
        channels: D.
        scale: factor of the diffusion model's latents, latents * scale.
    """

    encode: Callable[[Any, Array], Array]
    quantize: Callable[[Any, Array], Quantized]
    lookup: Callable[[Any, Array], Array]
    decode: Callable[[Any, Array], Array]
    factor: int
    channels: int
    scale: float = 1.0

    def posterior(self, params: Any, images: Array) -> tuple[Array, Array]:
        """Map images to the diffusion model's latents, not quantized (Rombach et al. 2022, sec. 3.1), and zeros."""
        latents = self.encode(params, images) * self.scale
        return latents, jnp.zeros_like(latents)

    def decode_latents(self, params: Any, latents: Array) -> Array:
        """Map the diffusion model's latents to images, float32 at least; see `decode_singly`."""
        return decode_singly(lambda z: self.decode(params, z / self.scale), latents)


def vq_codec(module: VQAutoencoder, *, scale: float = 1.0) -> VQCodec:
    """Turn an autoencoder into pure functions.

    Args:
        module: the autoencoder.
        scale: see `VQCodec`.

    Returns:
        the functions.
    """

    def method(name):
        return lambda params, x: module.apply({"params": params}, x, method=name)

    encode, quantize, lookup, decode = map(method, ("encode", "quantize", "lookup", "decode"))
    return VQCodec(encode, quantize, lookup, decode, module.factor, module.code_dim, scale)
