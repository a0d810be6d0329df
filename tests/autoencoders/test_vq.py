"""The codebook: nearest neighbours, gradients that pass it, and the two losses that move it and the latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import autoencoders
from jaxdiff.autoencoders import codebook_loss, commitment_loss, nearest, quantize

RNG = np.random.default_rng(0)
BOOK = RNG.normal(size=(7, 3)).astype(np.float32)
Z = RNG.normal(size=(2, 4, 5, 3)).astype(np.float32)


def test_the_nearest_code_by_all_distances():
    distances = ((Z[..., None, :] - BOOK.reshape(1, 1, 1, 7, 3)) ** 2).sum(-1)
    got = nearest(BOOK, Z)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, distances.argmin(-1))
    assert len(np.unique(got)) > 4


def test_far_from_the_origin_too():
    np.testing.assert_array_equal(nearest(BOOK + 30, Z + 30), nearest(BOOK, Z))


def test_codes_are_their_own_nearest():
    got = quantize(BOOK, BOOK[[3, 0, 6]])
    np.testing.assert_array_equal(got.indices, [3, 0, 6])
    np.testing.assert_array_equal(got.latents, BOOK[[3, 0, 6]])


def test_the_gradient_goes_straight_through():
    weight = RNG.normal(size=Z.shape).astype(np.float32)
    to_book, to_z = jax.grad(lambda book, z: (quantize(book, z).latents * weight).sum(), (0, 1))(BOOK, Z)
    np.testing.assert_array_equal(to_z, weight)
    np.testing.assert_array_equal(to_book, np.zeros_like(BOOK))


def test_the_losses_and_whom_they_move():
    got = quantize(BOOK, Z)
    gap = Z - np.asarray(got.codes)
    for loss in (codebook_loss, commitment_loss):
        np.testing.assert_allclose(loss(Z, got.codes), np.mean(gap**2), rtol=1e-6)

    def of(loss):
        return jax.grad(lambda book, z: loss(z, quantize(book, z).codes), (0, 1))(BOOK, Z)

    to_book, to_z = of(codebook_loss)
    want = np.zeros_like(BOOK)
    np.add.at(want, np.asarray(got.indices), -2 * gap / gap.size)
    np.testing.assert_allclose(to_book, want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(to_z, np.zeros_like(Z))

    to_book, to_z = of(commitment_loss)
    np.testing.assert_array_equal(to_book, np.zeros_like(BOOK))
    np.testing.assert_allclose(to_z, 2 * gap / gap.size, rtol=0, atol=1e-6)


def test_what_is_no_code_is_nan():
    module = autoencoders.VQAutoencoder(codes=7, code_dim=2)
    params = {"quantize.embedding": {"embedding": jnp.arange(14.0).reshape(7, 2)}}
    got = autoencoders.vq_codec(module).lookup(params, jnp.array([[0, 6], [7, -1]]))
    np.testing.assert_array_equal(got, [[[0, 1], [12, 13]], [[np.nan] * 2] * 2])


@pytest.mark.slow
def test_shapes_and_types():
    module = autoencoders.VQAutoencoder(
        widths=(4, 8), num_blocks=1, groups=2, codes=7, code_dim=5, latent_channels=3, dtype=jnp.bfloat16
    )
    params = jax.eval_shape(lambda key: autoencoders.init(module, key), jax.random.key(0))
    codec = autoencoders.vq_codec(module)
    z = jax.eval_shape(codec.encode, params, jax.ShapeDtypeStruct((2, 8, 10, 3), jnp.float32))
    got = jax.eval_shape(codec.quantize, params, z)
    assert z.shape == got.latents.shape == (2, 4, 5, 5)
    assert got.indices.shape == (2, 4, 5)
    assert jax.eval_shape(codec.lookup, params, got.indices).shape == z.shape
    image = jax.eval_shape(codec.decode, params, z)
    assert image.shape == (2, 8, 10, 3)
    assert z.dtype == image.dtype == jnp.float32
