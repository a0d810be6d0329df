"""Linear multistep against k-diffusion's algorithm with SciPy's integrals, and on eps that a polynomial is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
EDM, FLOW = jd.processes.EDM(), jd.processes.Flow()
SIGMA = np.append(np.geomspace(20.0, 0.05, 8) * (1 + 0.2 * np.sin(np.arange(8))), 0.0)


def linear_multistep_coeff(order, t, i, j):
    def fn(tau):
        return np.prod([(tau - t[i - k]) / (t[i - j] - t[i - k]) for k in range(order) if k != j])

    return quad(fn, t[i], t[i + 1], epsabs=1e-13, epsrel=1e-13)[0]


def sample_lms(x, sigmas, order, first=0):
    """The steps from `first` on, and no history before."""
    ds = []
    for i in range(first, len(sigmas) - 1):
        ds = [*ds, (x - rational(x, Level(sigmas[i], 1.0, sigmas[i]))) / sigmas[i]][-order:]
        coeffs = [linear_multistep_coeff(len(ds), sigmas, i, j) for j in range(len(ds))]
        x = x + sum(coeff * d for coeff, d in zip(coeffs, reversed(ds), strict=True))
    return x


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


def start():
    return jnp.asarray(20 * np.random.default_rng(0).normal(size=(5, 2)))


@pytest.mark.parametrize(
    "order", [pytest.param(k, marks=[] if k in (1, 4) else pytest.mark.slow) for k in (1, 2, 3, 4)]
)
def test_is_the_published_algorithm(order):
    out = run(jd.solvers.lms(order), EDM(SIGMA), start())
    np.testing.assert_allclose(out, sample_lms(np.asarray(start()), SIGMA, order), rtol=1e-9, atol=1e-10)
    if order == 1:
        np.testing.assert_allclose(out, run(jd.solvers.euler(), EDM(SIGMA), start()), rtol=1e-9)


def test_pure_noise_is_no_part_of_the_history():
    # From t = 1 of flow, where sigma / alpha is infinite: an Euler step, then the algorithm as if it began there.
    t, x = np.array([1.0, 0.8, 0.65, 0.4, 0.2, 0.0]), np.asarray(start()) / 20
    first = (1 - t[1]) * rational(x, Level(1.0, 0.0, 1.0)) + t[1] * x
    levels = FLOW(t)
    with np.errstate(divide="ignore"):
        expected = sample_lms(first / (1 - t[1]), t / (1 - t), 4, first=1)
    np.testing.assert_allclose(run(jd.solvers.lms(), levels, jnp.asarray(x)), expected, rtol=1e-9)


@pytest.mark.parametrize("order", [4, pytest.param(3, marks=pytest.mark.slow)])
def test_is_exact_where_eps_is_a_polynomial_of_one_degree_less_down_to_sigma_0(order):
    coefficients = np.array([0.3, -0.5, 0.2, 0.7])[:order]
    eps = np.polynomial.Polynomial(coefficients)
    s = np.array([3.0, 2.6, 2.1, 1.9, 1.2, 0.7, 0.0])
    denoise = lambda x, level: x - level.sigma * jnp.polyval(jnp.asarray(coefficients[::-1]), level.sigma)  # noqa: E731
    sample = jax.jit(lambda x: jd.sample_path(denoise, jd.solvers.lms(order), EDM(s), x, KEY)[1])
    moves = np.diff(np.asarray(sample(jnp.ones((1, 1))))[:, 0, 0])
    exact = np.diff(eps.integ()(s))[1:]
    np.testing.assert_allclose(moves[order - 2 :], exact[order - 2 :], rtol=1e-12)
    assert not np.allclose(moves[order - 3], exact[order - 3], rtol=1e-4)  # the order before has an error to show


@pytest.mark.parametrize("order", [0, 5, 2.5, 2.0])
def test_refuses_another_order(order):
    with pytest.raises(ValueError, match=f"order of lms must be 1, 2, 3 or 4, got {order}"):
        jd.solvers.lms(order)


def test_says_its_order():
    assert [jd.solvers.lms(k)[2:5] for k in (1, 2, 3, 4)] == [(k, 1, False) for k in (1, 2, 3, 4)]
