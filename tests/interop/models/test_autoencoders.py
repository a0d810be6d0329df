"""Configs of diffusers' autoencoders: the published sizes, and what is refused."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxdiff as jd
from jaxdiff.interop.formats.keys import places

STABLE_DIFFUSION = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
FLUX = STABLE_DIFFUSION | {
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
CELEBA = STABLE_DIFFUSION | {
    "_class_name": "VQModel",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "vq_embed_dim": 3,
}


@pytest.mark.parametrize(
    "config, number, factor",
    [
        pytest.param(STABLE_DIFFUSION, 83_653_863, 8, id="stable diffusion"),
        pytest.param(FLUX, 83_819_683, 8, id="flux", marks=pytest.mark.slow),
        pytest.param(CELEBA, 55_322_782, 4, id="celeba", marks=pytest.mark.slow),
    ],
)
def test_the_published_sizes(config, number, factor):
    built = jd.interop.architecture(config, jnp.bfloat16)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    assert sum(math.prod(place.shape) for place in places(shapes, built.rename).values()) == number
    assert built.apply.factor == factor
    assert built.apply.channels == config["latent_channels"]


def affine(**fields):
    codec = jd.interop.architecture(STABLE_DIFFUSION | fields).apply
    return codec.scale, codec.shift


def test_the_affine_map_to_the_diffusion_model():
    assert affine() == (0.18215, 0.0)
    assert affine(scaling_factor=1.5305, shift_factor=0.0609) == (1.5305, 0.0609)
    scale, shift = affine(scaling_factor=0.5, latents_mean=[-1.0, 1.0, 2.0, 0.0], latents_std=[8.0, 4.0, 2.0, 1.0])
    assert scale == (0.0625, 0.125, 0.25, 0.5)
    assert shift == (-1.0, 1.0, 2.0, 0.0)


@pytest.mark.parametrize(
    "base, fields, match",
    [
        (STABLE_DIFFUSION, {"act_fn": "relu"}, "act_fn"),
        (STABLE_DIFFUSION, {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "up_block_types, from the largest"),
        (STABLE_DIFFUSION, {"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types"),
        (STABLE_DIFFUSION, {"latents_mean": [0.0] * 4}, "latents_std"),
        (STABLE_DIFFUSION, {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "shift_factor"),
        (STABLE_DIFFUSION, {"new_option": 3}, "new_option"),
        (CELEBA, {"norm_type": "spatial"}, "norm_type"),
        (CELEBA, {"shift_factor": 0.5}, "shift_factor"),
    ],
)
def test_what_is_not_supported_is_refused(base, fields, match):
    with pytest.raises(ValueError, match=match):
        jd.interop.architecture(base | fields)
