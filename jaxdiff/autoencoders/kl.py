"""The autoencoder with a Gaussian posterior: Stable Diffusion 1, 2, XL, 3 and Flux."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.autoencoders.blocks import Decoder, Encoder
from jaxdiff.autoencoders.codec import Codec, check_channels, check_images
from jaxdiff.networks.layers import Conv, at_least_float32


class KLAutoencoder(nn.Module):
    """Convolutional autoencoder whose posterior is a diagonal Gaussian (Rombach et al. 2022, app. G).

    Attributes:
        in_channels: channels of the images.
        out_channels: channels of the decoded images.
        latent_channels: channels of the latents.
        widths: channels by level, the finest first; each further level halves the image.
        num_blocks: residual blocks per level in the encoder; the decoder has one more.
        attention: levels with attention after each residual block.
        mid_attention: attention between the two blocks at the bottom.
        use_quant_conv: a 1 x 1 convolution after the encoder.
        use_post_quant_conv: a 1 x 1 convolution before the decoder.
        groups: groups of the norms; divides all widths.
        dtype: type of the computation; parameters are float32, the results float32 at least.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels per latent along an axis."""
        return 2 ** (len(self.widths) - 1)

    def setup(self):
        layout = (self.widths, self.num_blocks, self.mid_attention, self.groups, self.dtype, self.attention)
        self.encoder = Encoder(2 * self.latent_channels, *layout)
        self.decoder = Decoder(self.out_channels, *layout)
        if self.use_quant_conv:
            self.quant_conv = Conv(2 * self.latent_channels, size=1, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Conv(self.latent_channels, size=1, dtype=self.dtype)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Map images [B, H, W, C] in [-1, 1] to the posterior's mean and std, each [B, H / factor, W / factor, D].

        Raises:
            ValueError: the rank or the number of channels is wrong, or a size is no multiple of the factor.
        """
        check_images(x, self.in_channels, self.factor)
        h = self.encoder(x)
        if self.use_quant_conv:
            h = self.quant_conv(h)
        mean, log_var = jnp.split(h.astype(at_least_float32(self.dtype)), 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_var, -30.0, 20.0))  # the reference's bounds

    def decode(self, z: Array) -> Array:
        """Map latents [B, h, w, D] to images [B, factor h, factor w, out_channels].

        Raises:
            ValueError: the rank or the number of channels is wrong.
        """
        check_channels(z, self.latent_channels)
        if self.use_post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(at_least_float32(self.dtype))

    def __call__(self, x: Array) -> Array:
        """Encode images, and decode the mean of the posterior."""
        return self.decode(self.encode(x)[0])


def kl_codec(
    module: KLAutoencoder, *, scale: float | tuple[float, ...] = 1.0, shift: float | tuple[float, ...] = 0.0
) -> Codec:
    """Turn an autoencoder into pure functions.

    Args:
        module: the autoencoder.
        scale: see `Codec`.
        shift: see `Codec`.

    Returns:
        the functions.
    """

    def encode(params, images):
        return module.apply({"params": params}, images, method="encode")

    def decode(params, z):
        return module.apply({"params": params}, z, method="decode")

    return Codec(encode, decode, module.factor, module.latent_channels, scale, shift)


def kl_loss(mean: Array, std: Array) -> Array:
    """Return the batch mean of KL(N(mean, std^2) || N(0, 1)), summed over an example's latents, in nats.

    Kingma and Welling 2014 (arXiv:1312.6114), app. B. For a variational bound, the reconstruction term must also be a
    sum over each example.

    Args:
        mean: [B, ...].
        std: [B, ...], positive.

    Returns:
        a scalar, >= 0.
    """
    each = 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)
    return each.sum(tuple(range(1, mean.ndim))).mean()
