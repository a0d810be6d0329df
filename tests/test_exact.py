"""The oracles are checked themselves, against integrals and derivatives taken numerically."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, Mixture, gaussian

from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
LEVELS = [(0.9, 0.3), (0.3, 0.95), (1.0, 4.0), (0.02, 0.98)]


def level(alpha, sigma):
    return Level(*(jnp.float64(number) for number in (0.0, alpha, sigma)))


def normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (np.sqrt(2 * np.pi) * std)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoiser_and_density_are_the_integrals_over_x0(alpha, sigma):
    weights, means, stds = [0.4, 0.6], [-1.0, 0.5], [0.3, 0.6]
    m = Mixture.of(weights, np.array(means)[:, None], np.square(stds)[:, None, None])
    x = np.linspace(-2, 2, 7)
    x0 = np.linspace(-6, 6, 40001)
    prior = sum(w * normal(x0, mean, std) for w, mean, std in zip(weights, means, stds, strict=True))
    joint = prior * normal(x[:, None], alpha * x0, sigma)
    density = joint.sum(1) * (x0[1] - x0[0])
    np.testing.assert_allclose(m.log_density(x[:, None], level(alpha, sigma)), np.log(density), rtol=1e-9, atol=1e-9)
    expected = (joint * x0).sum(1) / joint.sum(1)
    np.testing.assert_allclose(m.denoise(jnp.asarray(x[:, None]), level(alpha, sigma))[:, 0], expected, atol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_score_is_the_gradient_of_the_log_density_and_tweedie_joins_it_to_the_denoiser(alpha, sigma):
    x, at = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2))), level(alpha, sigma)
    score = CLUSTERS.score(x, at)
    np.testing.assert_allclose(score, jax.grad(lambda x: CLUSTERS.log_density(x, at).sum())(x), rtol=1e-10, atol=1e-12)
    tweedie = (alpha * CLUSTERS.denoise(x, at) - x) / sigma**2
    np.testing.assert_allclose(score, tweedie, rtol=1e-9, atol=1e-9)


def test_draws_have_the_moments():
    at = level(0.8, 0.5)
    x = CLUSTERS.draw(np.random.default_rng(0), 200_000, at)
    mean, cov = CLUSTERS.moments(at)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.015)


def test_the_gaussians_flow_solves_the_probability_flow_ode():
    # With alpha = 1 and sigma the time, dx / dsigma = -sigma score(x, sigma) (Karras et al. 2022, eq. 1).
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    flow = lambda sigma: BLOB.flow(x, level(1.0, 3.0), level(1.0, sigma))  # noqa: E731
    value, slope = jax.jvp(flow, (jnp.float64(0.6),), (jnp.float64(1.0),))
    np.testing.assert_allclose(slope, -0.6 * BLOB.score(value, level(1.0, 0.6)), rtol=1e-10)
    np.testing.assert_allclose(flow(3.0), x, rtol=1e-12)


def test_a_level_per_example_and_any_shape_of_data():
    m = gaussian(np.arange(4.0), np.diag([1.0, 2.0, 3.0, 4.0]))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)))
    levels = Level(jnp.zeros(3), jnp.array([0.9, 0.5, 0.1]), jnp.array([0.1, 0.5, 0.9]))
    together = m.denoise(x, levels)
    assert together.shape == x.shape
    for i in range(3):
        alone = m.denoise(x[i : i + 1], jax.tree.map(lambda field: field[i], levels))  # noqa: B023
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-12)


def test_components_add_up_to_the_mixture():
    x, at = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2))), level(0.7, 0.6)
    log_p = CLUSTERS.log_component(x, at)
    np.testing.assert_allclose(jnp.exp(log_p).sum(1), 1, rtol=1e-12)
    each = jnp.stack([CLUSTERS.component(k).denoise(x, at) for k in range(3)], axis=1)
    np.testing.assert_allclose(CLUSTERS.denoise(x, at), jnp.sum(jnp.exp(log_p)[:, :, None] * each, axis=1), rtol=1e-10)
