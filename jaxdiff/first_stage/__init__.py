"""The first stage of latent diffusion: autoencoders, trained from scratch or from another project's weights."""

from jaxdiff.first_stage.equivariance import transform_pair
from jaxdiff.first_stage.knobs import Architecture, Objective
from jaxdiff.first_stage.losses import adaptive_weight, autoencoder_losses, kl_latents, vq_latents
from jaxdiff.first_stage.origin import Origin, open_origin
from jaxdiff.first_stage.parts import make_experiment
from jaxdiff.first_stage.perceptual import Perceptual, efficientnet_distance, image_features, lpips_distance

__all__ = [
    "Architecture",
    "Objective",
    "Origin",
    "Perceptual",
    "adaptive_weight",
    "autoencoder_losses",
    "efficientnet_distance",
    "image_features",
    "kl_latents",
    "lpips_distance",
    "make_experiment",
    "open_origin",
    "transform_pair",
    "vq_latents",
]
