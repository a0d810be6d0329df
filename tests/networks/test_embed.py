import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import embed
from jaxdiff.networks.embed import Fourier, LearnedTimes, Sinusoidal, StoredFourier


@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoidal_frequencies_and_order(shift):
    noise, half = np.array([0.0, 1.0, 999.0]), 4
    angle = noise[:, None] * np.exp(-np.log(1e4) * np.arange(half) / (half - shift))
    cos_sin = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    sin_cos = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    x = jnp.asarray(noise, jnp.float32)
    np.testing.assert_allclose(Sinusoidal(shift=shift)(x, 8), cos_sin, atol=1e-4)
    np.testing.assert_allclose(Sinusoidal(cos_first=False, shift=shift)(x, 8), sin_cos, atol=1e-4)


def test_fourier_is_normal_frequencies_in_cycles():
    x = jnp.array([0.25, -0.5])
    y = np.asarray(Fourier(scale=1.0)(x, 2000))
    cos, sin = np.split(y, 2, axis=1)
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-5)
    # E cos(2 pi f x) = exp(-(2 pi x)^2 / 2) for f ~ N(0, 1).
    np.testing.assert_allclose(cos.mean(1), np.exp(-((2 * np.pi * np.array([0.25, 0.5])) ** 2) / 2), atol=0.1)
    np.testing.assert_array_equal(y, Fourier(scale=1.0)(x, 2000))
    assert not np.array_equal(y, Fourier(scale=1.0, seed=1)(x, 2000))


@pytest.mark.parametrize("time", [Sinusoidal(), Fourier()])
def test_noise_is_embedded_in_float32(time):
    y = time(jnp.array([999.0], jnp.bfloat16), 8)
    assert y.dtype == jnp.float32


def test_mlp_is_linear_silu_linear_in_float32():
    module = embed.EmbeddingMLP(3, dtype=jnp.bfloat16)
    x = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    w1, w2 = params["linear_1"]["kernel"], params["linear_2"]["kernel"]
    h = np.asarray(x @ w1)
    y = jax.jit(module.apply)({"params": params}, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, (h / (1 + np.exp(-h))) @ np.asarray(w2), rtol=1e-5, atol=1e-6)


def test_class_table_has_a_null_row_and_no_wrong_row():
    module = embed.ClassEmbedding(3, 4)
    table = module.init(jax.random.key(0), jnp.zeros(1, int))["params"]["embedding"]
    assert table.shape == (4, 4)
    y = module.apply({"params": {"embedding": table}}, jnp.array([0, 3, 4, -1]))
    np.testing.assert_array_equal(y[:2], table[jnp.array([0, 3])])
    assert np.isnan(y[2:]).all()


def test_a_noise_level_is_looked_up_by_the_nearest_row_and_none_is_outside_of_the_table():
    module = embed.noise_embedding(LearnedTimes(3), "time_proj")
    noise = jnp.array([0.0, 1.4, 1.6, 2.0, 3.0, -1.0])
    table = module.init(jax.random.key(0), noise, 4)["params"]["embedding"]
    assert table.shape == (3, 4)
    y = module.apply({"params": {"embedding": table}}, noise.astype(jnp.bfloat16), 4)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y[:4], table[jnp.array([0, 1, 2, 2])])
    assert np.isnan(y[4:]).all()


@pytest.mark.parametrize("cos_first", [True, False])
def test_stored_frequencies_are_drawn_once_and_not_trained(cos_first):
    module = embed.noise_embedding(StoredFourier(0.5, cos_first), "time_proj")
    noise = jnp.array([0.25, -0.5])
    params = {"params": {"weight": jax.random.normal(jax.random.key(0), (4,))}}
    angle = 2 * np.pi * np.outer(noise, params["params"]["weight"])
    parts = [np.cos(angle), np.sin(angle)]
    want = np.concatenate(parts if cos_first else parts[::-1], 1)
    np.testing.assert_allclose(module.apply(params, noise, 8), want, atol=1e-5)
    drawn = module.init(jax.random.key(0), noise, 4000)["params"]["weight"]
    assert 0.45 < drawn.std() < 0.55
    assert not np.any(jax.grad(lambda p: module.apply(p, noise, 8).sum())(params)["params"]["weight"])
