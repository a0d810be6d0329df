"""The Gaussian autoencoder: its divergence, its affine map to a diffusion model's latents, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import autoencoders

MODULE = autoencoders.KLAutoencoder(widths=(4, 8), num_blocks=1, groups=2)


def test_the_divergence_by_numerical_integration():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 3)), rng.uniform(0.3, 2, (2, 3))
    x = np.linspace(-20, 20, 40001).reshape(1, 1, -1)
    density = np.exp(-(((x - mean[..., None]) / std[..., None]) ** 2) / 2) / (std[..., None] * np.sqrt(2 * np.pi))
    log_ratio = -(((x - mean[..., None]) / std[..., None]) ** 2) / 2 - np.log(std)[..., None] + x**2 / 2
    want = (density * log_ratio).sum(-1) * 1e-3
    got = autoencoders.kl_loss(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(got, want.sum(1).mean(), rtol=1e-5)


def test_no_divergence_of_the_prior_from_itself():
    assert autoencoders.kl_loss(jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3))) == 0


@pytest.mark.parametrize("scale, shift", [(0.5, 3.0), ((0.5, 2.0, 1.0, 4.0), (1.0, -1.0, 0.0, 3.0))])
def test_standardizing_and_back(scale, shift):
    codec = autoencoders.kl_codec(MODULE, scale=scale, shift=shift)
    z = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    got = jax.jit(codec.normalize)(z)
    want = (z - np.broadcast_to(shift, (1, 1, 1, 4))) * np.broadcast_to(scale, (1, 1, 1, 4))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(codec.denormalize(got), z, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_shapes_and_types():
    module = MODULE.clone(dtype=jnp.bfloat16, in_channels=1, out_channels=2)
    params = jax.eval_shape(lambda key: autoencoders.init(module, key), jax.random.key(0))
    codec = autoencoders.kl_codec(module)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert (codec.factor, codec.channels) == (2, 4)
    mean, std = jax.eval_shape(codec.encode, params, jax.ShapeDtypeStruct((3, 8, 10, 1), jnp.float32))
    image = jax.eval_shape(codec.decode, params, mean)
    assert mean.shape == std.shape == (3, 4, 5, 4)
    assert image.shape == (3, 8, 10, 2)
    assert mean.dtype == std.dtype == image.dtype == jnp.float32


@pytest.mark.parametrize("shape, match", [((1, 8, 8, 1), "3"), ((8, 8, 3), "3"), ((1, 8, 9, 3), "multiple of 2")])
def test_other_images_are_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        MODULE.apply({"params": {}}, jnp.zeros(shape), method="encode")


def test_other_latents_are_refused():
    with pytest.raises(ValueError, match=r"\[B, H, W, 4\]"):
        MODULE.apply({"params": {}}, jnp.zeros((1, 8, 8, 3)), method="decode")
