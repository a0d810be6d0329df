"""SA-Solver against its paper's integrals."""

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
START, Z = np.random.default_rng(0).normal(size=(5, 2)), np.random.default_rng(1).normal(size=(6, 5, 2))
LEVELS = np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.1, 0.05])


def step(x, z, begin, end, tau, nodes, values):
    """Xue et al. 2023: the variance-controlled SDE from lam = begin to end, the values interpolated in lam.

    x_t = (sigma_t / sigma_s) exp(-int tau^2) x_s + sigma_t F + sigma_t sqrt(1 - exp(-2 int tau^2)) z.
    """
    sigma = [1 / np.sqrt(1 + np.exp(2 * lam)) for lam in (begin, end)]
    F = 0
    for j, value in enumerate(values):
        p = lagrange(np.array(nodes) - begin, np.eye(len(nodes))[j])

        def weight(lam, p=p):
            return np.exp(-(tau**2) * (end - lam)) * (1 + tau**2) * np.exp(lam) * p(lam - begin)

        F = F + quad(weight, begin, end, epsabs=0, epsrel=1e-12)[0] * value
    return (
        sigma[1] / sigma[0] * np.exp(-(tau**2) * (end - begin)) * x
        + sigma[1] * F
        + sigma[1] * np.sqrt(-np.expm1(-2 * tau**2 * (end - begin))) * z
    )


def transcribed(lam, alpha, sigma, p, c, tau):
    """Predict, evaluate, correct; orders grow as answers come in."""
    x, begin, past, lams = START, START, [], []
    for i in range(len(lam) - 1):
        x0 = rational(x, Level(np.nan, alpha[i], sigma[i]))
        if i and c:
            values, nodes = [x0, *past][: min(c, i + 1)], [lam[i], *lams][: min(c, i + 1)]
            x = step(begin, Z[i - 1], lam[i - 1], lam[i], tau(sigma[i - 1]), nodes, values)
        past, lams, begin = [x0, *past], [lam[i], *lams], x
        x = step(x, Z[i], lam[i], lam[i + 1], tau(sigma[i]), lams[:p], past[:p])
    return x


def run(solver, levels):
    return jax.jit(lambda x: jd.sample(rational, solver, levels, x, jax.random.key(0)))(jnp.asarray(START))


@pytest.mark.slow
@pytest.mark.parametrize(("p", "c"), [(1, 1), (2, 2), (3, 0), (3, 4)])
def test_is_the_papers_algorithm_on_an_uneven_grid(p, c):
    levels = jd.processes.VP()(LEVELS)
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)
    noise = lambda key, x, cur, nxt: jnp.asarray(Z)[jnp.argmin(jnp.abs(levels.sigma - cur.sigma))]  # noqa: E731
    for tau in (0.7, lambda sigma: 1.3 * sigma):
        by_level = (lambda level, tau=tau: tau(level.sigma)) if callable(tau) else tau
        out = run(jd.solvers.sa_solver(p, c, by_level, noise_sampler=noise), levels)
        number = tau if callable(tau) else lambda sigma: 0.7
        np.testing.assert_allclose(out, transcribed(np.log(alpha / sigma), alpha, sigma, p, c, number), rtol=1e-8)


@pytest.mark.slow
def test_what_it_is_where_others_are_it():
    levels = jd.processes.VP()(np.append(LEVELS, 0))
    s = jd.solvers
    same = [
        (s.sa_solver(1, 0, 0.0), s.ddim()),
        (s.sa_solver(3, 0, 0), s.dpmpp_3m()),
        (s.sa_solver(2, 0, 0.8), s.dpmpp_2m_sde(0.64, variant="heun")),
        (s.sa_solver(3, 0, 0.8), s.dpmpp_3m_sde(0.64)),
    ]
    for ours, other in same:
        np.testing.assert_allclose(run(ours, levels), run(other, levels), rtol=1e-10)
        assert ours.stochastic == other.stochastic


@pytest.mark.slow
def test_a_traced_tau_of_0_is_the_ode():
    levels = jd.grids.by_time(jd.processes.Flow(), 4)
    sample = lambda tau: jd.sample(rational, jd.solvers.sa_solver(tau=tau), levels, START, jax.random.key(0))  # noqa: E731
    out, noisy = jax.jit(jax.vmap(sample))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(out, run(jd.solvers.sa_solver(tau=0.0), levels), rtol=1e-10)
    assert np.all(np.isfinite(noisy)) and not np.allclose(noisy, out)


def test_orders_that_it_claims():
    claimed = [jd.solvers.sa_solver(p, c).order for p, c in [(1, 0), (1, 1), (1, 2), (2, 0), (3, 4)]]
    assert claimed == [1, 1, 2, 2, 2]
    assert [jd.solvers.sa_solver(p, c, 0.0).order for p, c in [(1, 2), (2, 4), (3, 0), (3, 4), (3, 2)]] == [
        2,
        3,
        3,
        4,
        3,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "predictor_order must be an integer of at least 1, got 0"),
        ((2, -1), "corrector_order must be an integer of at least 0, got -1"),
        ((2, 2, -0.5), r"tau must be at least 0, got -0\.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jd.solvers.sa_solver(*arguments)
