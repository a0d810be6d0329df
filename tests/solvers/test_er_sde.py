"""ER-SDE-Solver against its paper's algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, rational
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
START, Z = np.random.default_rng(0).normal(size=(5, 2)), np.random.default_rng(1).normal(size=(6, 5, 2))
T = np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.1, 0.05])


def phi_5(rho):
    return rho * (np.exp(rho**0.3) + 10)


def transcribed(alpha, sigma, x, order, *, phi=phi_5, denoise=rational, between=0.0, exact=()):
    """Cui et al. 2023, with exact integrals; lam of the paper is rho here.

    `between` = 1 takes the first difference for the slope halfway between the levels it is of, where the paper takes
    it for the slope at the nearer one. The first steps end on `exact`.
    """
    rho, past, D_old = sigma / alpha, [], None
    for i in range(len(rho) - 1):
        x0 = denoise(x, Level(np.nan, alpha[i], sigma[i]))
        r = phi(rho[i + 1]) / phi(rho[i])
        y = r * x / alpha[i] + (1 - r) * x0
        gap = rho[i + 1] - rho[i]
        if past and order > 1:
            D = (x0 - past[0]) / (rho[i] - rho[i - 1])
            one, two = (
                quad(lambda s, j=j, i=i: (s - rho[i]) ** j / phi(s), rho[i + 1], rho[i], epsabs=0, epsrel=1e-12)[0]
                for j in (0, 1)
            )
            first = gap + phi(rho[i + 1]) * one
            y = y + first * D
            if D_old is not None and order > 2:
                U = (D - D_old) / ((rho[i] - rho[i - 2]) / 2)
                second = gap**2 / 2 + phi(rho[i + 1]) * two
                y = y + second * U + between * first * (rho[i] - rho[i - 1]) / 2 * U
            D_old = D
        var = np.maximum(rho[i + 1] ** 2 - rho[i] ** 2 * r**2, 0)
        x = exact[i] if i < len(exact) else alpha[i + 1] * (y + np.sqrt(var * (var > 1e-12)) * Z[i % 6])
        past = [x0]
    return x


def log_scale(rho):
    return jnp.log(jnp.exp(rho**0.3) + 10)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
def test_is_the_papers_algorithm_on_an_uneven_grid(order):
    levels = jd.processes.VP()(T)
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)
    noise = lambda key, x, cur, nxt: jnp.asarray(Z)[jnp.argmin(jnp.abs(levels.sigma - cur.sigma))]  # noqa: E731
    solvers = [jd.solvers.er_sde(order, noise_sampler=noise), jd.solvers.er_sde(order, log_scale, noise_sampler=noise)]
    run = jax.jit(lambda x: [jd.sample(rational, solver, levels, x, jax.random.key(0)) for solver in solvers])
    for out in run(jnp.asarray(START)):
        np.testing.assert_allclose(out, transcribed(alpha, sigma, START, order, between=1.0), rtol=1e-8)
    # The paper's own order 3 is near.
    published = transcribed(alpha, sigma, START, order)
    assert np.allclose(out, published, rtol=1e-8) is (order < 3) and np.allclose(out, published, atol=0.02)


def test_the_difference_taken_for_the_slope_at_its_end_leaves_order_2():
    (mean, cov), start = BLOB.moments(Level(0.0, 1.0, 0.0)), np.array([[1.0, 0.3]])

    def denoise(x, level):
        return mean + (x - mean) @ np.linalg.solve(cov + level.sigma**2 * np.eye(2), cov)

    def error(between, n):
        sigma = np.geomspace(4.0, 0.15, n + 1)
        ends = [Level(0.0, 1.0, s) for s in sigma[[0, 1, 2, 3, -1]]]
        exact = [np.asarray(BLOB.flow(jnp.asarray(start), ends[0], end)) for end in ends[1:]]
        ode = {"phi": lambda rho: rho, "denoise": denoise, "exact": exact[:-1], "between": between}
        return np.linalg.norm(transcribed(np.ones(n + 1), sigma, start, 3, **ode) - exact[-1])

    slopes = [np.log(error(between, 50) / error(between, 200)) / np.log(4) for between in (0, 1)]
    np.testing.assert_allclose(slopes, [2, 3], atol=0.15)


@pytest.mark.slow
def test_what_it_is_where_others_are_it():
    levels, x = jd.processes.VP()(np.append(T, 0)), jnp.asarray(START)
    s, sde = jd.solvers, jnp.log
    same = [
        (s.er_sde(1, jnp.zeros_like), s.ddim()),
        (s.er_sde(1, sde), s.ddim(1.0)),
        (s.er_sde(1, lambda rho: 0.5 * jnp.log(rho)), s.dpmpp_2m_sde(0.5)),
    ]
    run = jax.jit(lambda x: [[jd.sample(rational, s, levels, x, jax.random.key(0)) for s in pair] for pair in same[:2]])
    for ours, other in run(x):
        np.testing.assert_allclose(ours, other, rtol=1e-10)
    one = jax.tree.map(lambda field: field[:2], levels)  # of 2M SDE the first step, which is of order 1
    np.testing.assert_allclose(*(jd.sample(rational, s, one, x, jax.random.key(0)) for s in same[2]), rtol=1e-10)


def test_another_order_is_refused():
    for order in (0, 4, 2.0):
        with pytest.raises(ValueError, match=f"order of er_sde must be 1, 2 or 3, got {order}"):
            jd.solvers.er_sde(order)
