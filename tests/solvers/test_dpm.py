"""DPM-Solver++(2M) against its paper's algorithm and the form in which most samplers write it."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")


def run(levels, x, denoise=rational):
    return jax.jit(lambda x: jd.sample(denoise, jd.solvers.dpmpp_2m(), levels, x, jax.random.key(0)))(x)


def at(alpha, sigma):
    return Level(np.float64(0), np.float64(alpha), np.float64(sigma))


def test_is_algorithm_2_on_an_uneven_grid():
    """Lu et al. 2022b, algorithm 2, in the paper's indices."""
    t = np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.05])
    alpha = np.exp(-0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1)
    sigma = np.sqrt(1 - alpha**2)
    lam = np.log(alpha / sigma)
    start = np.random.default_rng(0).normal(size=(5, 2))

    x, h = start, np.append(np.nan, np.diff(lam))
    Q = [rational(x, at(alpha[0], sigma[0]))]
    x = sigma[1] / sigma[0] * x - alpha[1] * (np.exp(-h[1]) - 1) * Q[0]
    Q.append(rational(x, at(alpha[1], sigma[1])))
    for i in range(2, len(t)):
        r = h[i - 1] / h[i]
        D = (1 + 1 / (2 * r)) * Q[i - 1] - 1 / (2 * r) * Q[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h[i]) - 1) * D
        Q.append(rational(x, at(alpha[i], sigma[i])))
    np.testing.assert_allclose(run(jd.processes.VP()(t), jnp.asarray(start)), x, rtol=1e-8)


def test_on_sigmas_that_end_at_0_the_last_step_is_of_order_1():
    """As sample_dpmpp_2m of k-diffusion writes it, with alpha = 1 and t = -log sigma."""
    sigmas = np.append(np.geomspace(20.0, 0.05, 8), 0.0)
    start = 20 * np.random.default_rng(0).normal(size=(5, 2))
    x, old = start, None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = rational(x, at(1, sigma))
        with np.errstate(divide="ignore"):
            h = np.log(sigma) - np.log(sigma_next)
        if old is None or sigma_next == 0:
            used = denoised
        else:
            r = (np.log(sigmas[i - 1]) - np.log(sigma)) / h
            used = denoised + (denoised - old) / (2 * r)
        x, old = sigma_next / sigma * x - np.expm1(-h) * used, denoised
    np.testing.assert_allclose(run(jd.processes.EDM()(sigmas), jnp.asarray(start)), x, rtol=1e-9)


def test_the_first_two_steps_from_pure_noise_are_of_order_1():
    levels, x = (
        jd.grids.by_time(jd.processes.Flow(), 5, end=0.5),
        jnp.asarray(np.random.default_rng(0).normal(size=(5, 2))),
    )
    for n in (1, 2, 3):
        head = Level(*(field[: n + 1] for field in levels))
        euler = jax.jit(lambda x: jd.sample(rational, jd.solvers.euler(), head, x, jax.random.key(0)))(x)  # noqa: B023
        assert np.allclose(run(head, x), euler, rtol=1e-12) is (n < 3)


def test_does_not_draw_noise_and_evaluates_once():
    solver = jd.solvers.dpmpp_2m()
    assert (solver.order, solver.nfe, solver.stochastic) == (2, 1, False)
