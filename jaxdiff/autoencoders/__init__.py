"""Autoencoders: images to the latents of diffusion models, and back."""

from jaxdiff.autoencoders.codec import Codec, init
from jaxdiff.autoencoders.kl import KLAutoencoder, kl_codec, kl_loss
from jaxdiff.autoencoders.tiled import in_tiles, tiled
from jaxdiff.autoencoders.vq import (
    Quantized,
    VQAutoencoder,
    VQCodec,
    codebook_loss,
    commitment_loss,
    nearest,
    quantize,
    vq_codec,
)

__all__ = [
    "Codec",
    "KLAutoencoder",
    "Quantized",
    "VQAutoencoder",
    "VQCodec",
    "codebook_loss",
    "commitment_loss",
    "in_tiles",
    "init",
    "kl_codec",
    "kl_loss",
    "nearest",
    "quantize",
    "tiled",
    "vq_codec",
]
