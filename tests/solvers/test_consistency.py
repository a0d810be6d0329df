"""Multistep consistency sampling: with Gaussian data's exact consistency function, samples have the data's law."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.exact import BLOB

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

CLEAN = Level(jnp.float32(0), jnp.float32(1), jnp.float32(0))
KEY = jax.random.key(0)


def flow_to_clean(x, level):
    return BLOB.flow(x, level, CLEAN)


def test_is_algorithm_1():
    sigma = np.array([80.0, 10.0, 1.0, 0.0], np.float32)
    x = 80 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    out = jax.jit(lambda x: jd.sample(flow_to_clean, jd.solvers.consistency(), jd.processes.EDM()(sigma), x, KEY))(x)
    mean, cov = BLOB.moments(Level(0, 1, 0))
    values, vectors = np.linalg.eigh(cov)
    x = np.asarray(x, np.float64)
    for i, s in enumerate(sigma[:-1]):
        x = mean + ((x - mean) @ vectors * np.sqrt(values / (values + s**2))) @ vectors.T
        x = x + sigma[i + 1] * np.asarray(normal_like(fold_in(KEY, i), jnp.zeros((4, 2))))
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-4)


def test_the_law_is_the_datas_whatever_the_number_of_steps():
    n, mean_cov = 50_000, BLOB.moments(Level(0, 1, 0))
    for process, t in ((jd.processes.EDM(), [40.0, 0.0]), (jd.processes.Flow(), [0.95, 0.6, 0.3, 0.0])):
        levels = process(jnp.asarray(t, jnp.float32))
        first = jax.tree.map(lambda field: field[0], levels)
        x = jnp.asarray(BLOB.draw(np.random.default_rng(0), n, first), jnp.float32)
        run = jax.jit(lambda x, levels=levels: jd.sample(flow_to_clean, jd.solvers.consistency(), levels, x, KEY))
        out = np.asarray(run(x), np.float64)
        assert np.all(np.abs(out.mean(0) - mean_cov[0]) < 5 * np.sqrt(np.diag(mean_cov[1]) / n))
        np.testing.assert_allclose(np.cov(out.T), mean_cov[1], atol=5 * 0.5 * np.sqrt(2 / n))
