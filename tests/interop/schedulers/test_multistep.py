"""Tables of coefficients for exponential integrators; whole schedulers are compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.interop import scheduler
from jaxdiff.interop.schedulers.coefficients import moments, rule, step_between
from jaxdiff.interop.schedulers.multistep import Points

SIGMA = np.array([0.9, 0.7, 0.4, 0.1])
POINTS = Points(SIGMA, 1 - SIGMA, SIGMA)
KEY = jax.random.key(0)


def integral(f, H):
    """int_0^1 H exp(-H (1 - u)) f(u) du, by Gauss and Legendre's points."""
    x, w = np.polynomial.legendre.leggauss(60)
    u = (x + 1) / 2
    return np.sum(w / 2 * H * np.exp(-H * (1 - u)) * f(u))


@pytest.mark.parametrize("H", [1e-6, 0.3, -0.7, 0.999, 1.001, -1.5, 6.0, -6.0])
def test_moments_are_the_integrals(H):
    np.testing.assert_allclose(moments(H, 5), [integral(lambda u, j=j: u**j, H) for j in range(5)], rtol=1e-10)


@pytest.mark.parametrize("of_noise", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_is_exact_for_answers_that_are_a_polynomial_in_lam(of_noise, eta):
    """From the second level to the third, through answers at both and at the first."""
    f, lam = (lambda lam: 0.3 - lam + 0.5 * lam**2), POINTS.lam
    made = step_between(POINTS, (1, 2), (2, 1, 0), rule("half"), eta=eta, of_noise=of_noise)
    h, (alpha, sigma) = lam[2] - lam[1], (POINTS.alpha, POINTS.sigma)
    H = -h if of_noise else (1 + eta) * h
    scale = (1 + eta) * sigma[2] if of_noise else alpha[2]
    want = scale * integral(lambda u: f(lam[1] + u * h), H)
    np.testing.assert_allclose(made.weights @ f(lam[[2, 1, 0]]), want, rtol=1e-10)
    if not of_noise:  # a constant x_0 and its noise stay what they are
        np.testing.assert_allclose(made.keep * alpha[1] + made.weights.sum(), alpha[2], rtol=1e-12)
        np.testing.assert_allclose((made.keep * sigma[1]) ** 2 + made.noise**2, sigma[2] ** 2, rtol=1e-12)


def test_to_clean_data_and_to_the_same_level():
    clean = Points(*(np.append(field, last) for field, last in zip(POINTS, (0, 1, 0), strict=True)))
    for of_noise in (False, True):
        made = step_between(clean, (3, 4), (3, 2), rule("exact"), of_noise=of_noise)
        want = (0.0, 1.0) if not of_noise else (1 / 0.9, -0.1 / 0.9)  # x_0 = (x - sigma eps) / alpha
        np.testing.assert_allclose((made.keep, *made.weights), (*want, 0), rtol=1e-12)
    made = step_between(POINTS, (2, 2), (2, 1), rule("exact"))
    assert (made.keep, made.noise, *made.weights) == (1, 0, 0, 0)


def test_steps_are_found_by_their_level_and_begin_without_a_history():
    """Begun in the middle, the first step is DDIM's, in float32 too."""
    made = scheduler({"_class_name": "UniPCMultistepScheduler", "solver_order": 3})
    levels, x = made.sampling.grid(6), jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)), jnp.float32)
    run = jax.jit(
        lambda x, start, stop: jd.sample(rational, made.sampling.solver(6), levels, x, KEY, start=start, stop=stop)
    )
    cur, nxt = (levels.at(i) for i in (3, 4))
    want = jd.solvers.ddim().step(rational, KEY, x, (), cur, nxt)[0]
    np.testing.assert_allclose(run(x, 3, 4), want, rtol=2e-5)


def test_a_flow_on_a_curve_beyond_1_is_refused():
    made = scheduler({"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True})
    with pytest.raises(ValueError, match="no finite coefficients"):
        made.sampling.solver(5)
