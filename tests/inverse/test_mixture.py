"""Posteriors of a mixture's data, which are mixtures: how far from them each method draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, Mixture
from helpers.optimized import OPTIMIZED

import jaxdiff as jd
from jaxdiff import Level, inverse
from jaxdiff.inverse import operators
from jaxdiff.metrics import sliced_wasserstein

A, Y, STD = np.array([[1.0, 0.5]]), np.array([0.1]), 0.25
COUNT, STEPS, PARTICLES = 4000, 200, 64
distance = partial(sliced_wasserstein, directions=512)
KEY = jax.random.key(3, impl="rbg")


def measured(m):
    """Of each component: its gain and covariance, the distance of y from its mean, and log p(k, y)."""
    covs = np.einsum("kij,kj,klj->kil", m.vectors, m.values, m.vectors)
    inner = A @ covs @ A.T + STD**2 * np.eye(1)
    away = Y - m.means @ A.T
    log = np.log(m.weights) - 0.5 * (away[:, 0] ** 2 / inner[:, 0, 0] + np.log(2 * np.pi * inner[:, 0, 0]))
    return covs @ A.T @ np.linalg.inv(inner), covs, away, log


def density(m):
    """p(y)."""
    return np.exp(measured(m)[-1]).sum()


def posterior(m):
    """Of each component that of its Gaussian, and its share of p(y)."""
    gain, covs, away, log = measured(m)
    means = m.means + np.einsum("kij,kj->ki", gain, away)
    return Mixture.of(np.exp(log) / density(m), means, covs - gain @ A @ covs)


def problem(count):
    operator = operators.matrix(jnp.asarray(A, jnp.float32))
    return operator, jnp.broadcast_to(jnp.asarray(Y, jnp.float32)[None], (count, 1))


def drawn(denoise, solver, shape):
    levels = jd.grids.karras(jd.processes.VP(), STEPS, sigma_min=0.02, sigma_max=30.0)
    run = jax.jit(lambda x: jd.sample_state(denoise, solver, levels, x, KEY), compiler_options=OPTIMIZED)
    x, state = run(jd.noise.prior(levels, KEY, shape))
    return np.asarray(x, np.float64).reshape(-1, 2)[-COUNT:], state


@pytest.fixture(scope="module")
def exact():
    """The posterior, a sample of it, and how far another sample is from that."""
    mixture, rng = posterior(CLUSTERS), np.random.default_rng(0)
    one, *others = (mixture.draw(rng, COUNT) for _ in range(4))
    return mixture, one, np.mean([distance(one, other) for other in others])


def share(mixture, x):
    """Of each component, by the exact classifier."""
    return np.asarray(jax.nn.softmax(mixture.log_component(jnp.asarray(x), Level(0.0, 1.0, 0.0)))).mean(0)


@pytest.mark.slow
def test_particles_draw_from_it(exact):
    mixture, sample, apart = exact
    operator, y = problem(64)
    x, state = drawn(CLUSTERS.denoise, inverse.twisted(operator, y, STD), (64, PARTICLES, 2))
    ratio = np.exp(np.asarray(state.log_z, np.float64)) / density(CLUSTERS)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(64) < 0.15
    assert distance(sample, x) < 1.5 * apart
    np.testing.assert_allclose(share(mixture, x), mixture.weights, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bound"), [("tmpd", 0.25), ("pigdm", 0.25), ("diffpir", 0.35), ("dps", 0.45)])
def test_guidance_comes_near_it_and_is_biased(method, bound, exact):
    """A mixture's x_0 given x_t is no Gaussian. By share of the distance that the prior has."""
    mixture, sample, apart = exact
    operator, y = problem(COUNT)
    x = drawn(getattr(inverse, method)(CLUSTERS.denoise, operator, y, STD), jd.solvers.ddpm(), (COUNT, 2))[0]
    prior = distance(sample, CLUSTERS.draw(np.random.default_rng(1), COUNT))
    assert 2 * apart < distance(sample, x) < bound * prior
    # DPS leaves out the variance of x_0 given x_t, and so trusts the measurement too much.
    narrower = np.linalg.det(np.cov(x.T)) / np.linalg.det(mixture.moments(Level(0.0, 1.0, 0.0))[1])
    assert (narrower < 0.5) == (method == "dps")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bound"), [("daps", 0.25), ("split_gibbs", 0.45)])
def test_decoupled_annealing_comes_near_it(method, bound, exact):
    _, sample, _ = exact
    operator, y = problem(COUNT)
    solver = getattr(inverse, method)(inverse.exact(operator, y, STD), steps=10)
    prior = distance(sample, CLUSTERS.draw(np.random.default_rng(1), COUNT))
    assert distance(sample, drawn(CLUSTERS.denoise, solver, (COUNT, 2))[0]) < bound * prior
