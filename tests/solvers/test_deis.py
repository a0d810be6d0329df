"""DEIS against its paper's integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational
from scipy.integrate import quad
from scipy.interpolate import lagrange

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_integrates_lagranges_polynomials_in_log_rho_on_an_uneven_grid(order):
    """Zhang and Chen 2022: x / alpha moves by the integral of eps_hat over rho = sigma / alpha."""
    levels = jd.processes.VP()(np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.05]))
    alpha, sigma, rho = (np.asarray(a) for a in (levels.alpha, levels.sigma, levels.sigma / levels.alpha))
    start = np.random.default_rng(0).normal(size=(5, 2))
    x, past = start, []
    for i in range(5):
        eps = (x - alpha[i] * rational(x, Level(np.nan, alpha[i], sigma[i]))) / sigma[i]
        past = [eps, *past][:order]
        nodes = np.log(rho[i - np.arange(len(past))])
        polynomials = [lagrange(nodes, np.eye(len(past))[j]) for j in range(len(past))]
        c = [quad(lambda r: p(np.log(r)), rho[i], rho[i + 1], epsabs=0, epsrel=1e-12)[0] for p in polynomials]  # noqa: B023
        x = alpha[i + 1] * (x / alpha[i] + sum(a * b for a, b in zip(c, past, strict=True)))
    sample = lambda solver, levels: jax.jit(  # noqa: E731
        lambda x: jd.sample(rational, solver, levels, x, jax.random.key(0))
    )(jnp.asarray(start))
    np.testing.assert_allclose(sample(jd.solvers.deis(order), levels), x, rtol=1e-8)
    if order == 1:
        np.testing.assert_allclose(sample(jd.solvers.ddim(), levels), x, rtol=1e-8)


def test_another_order_is_refused():
    for order in (0, 4, 2.0):
        with pytest.raises(ValueError, match=f"order of deis must be 1, 2 or 3, got {order}"):
            jd.solvers.deis(order)
