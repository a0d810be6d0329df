"""Where solvers that draw noise end: the mean and covariance of Gaussian data, within Monte-Carlo error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import BLOB

import jaxdiff as jd

VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
ALL_OF_VP = VP, np.linspace(1.0, 0.0, 401)
CASES = {
    "ddpm small": (jd.solvers.ddpm(), *ALL_OF_VP),
    "ddpm large": (jd.solvers.ddpm("large"), *ALL_OF_VP),
    "ddpm small, flow": (jd.solvers.ddpm(), FLOW, np.linspace(1.0, 0.0, 401) ** 1.5),
    "ddpm small, ve": (jd.solvers.ddpm(), EDM, np.append(np.geomspace(80, 0.002, 500), 0)),
    "ddim 1": (jd.solvers.ddim(1.0), *ALL_OF_VP),
    "ddim 0.5": (jd.solvers.ddim(0.5), *ALL_OF_VP),
    "euler churn": (jd.solvers.euler(EDM, 0.02), EDM, np.append(np.geomspace(80, 0.002, 600), 0)),
    "heun churn": (jd.solvers.heun(EDM, 0.05), EDM, np.append(np.geomspace(80, 0.002, 200), 0)),
    "heun churn, vp": (jd.solvers.heun(VP, 0.05), VP, np.linspace(0.95, 0.0, 151)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mean_and_covariance(name):
    (solver, process, t), n = CASES[name], 100_000
    levels = process(jnp.asarray(t, jnp.float32))
    x = jnp.asarray(BLOB.draw(np.random.default_rng(0), n, jax.tree.map(lambda field: field[0], levels)), jnp.float32)
    out = jax.jit(lambda x, key: jd.sample(BLOB.denoise, solver, levels, x, key))(x, jax.random.key(0))
    mean, cov = BLOB.moments(jd.Level(0.0, 1.0, 0.0))
    # Four standard errors of the mean and of the covariance, and 1 % of the covariance for the finite step.
    out = np.asarray(out, np.float64)
    print(name, out.mean(0) - mean, (np.cov(out.T) - cov) / np.trace(cov))
    assert np.all(np.abs(out.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n) + 2e-3)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(out.T) - cov) < 4 * error + 0.01 * np.trace(cov))
