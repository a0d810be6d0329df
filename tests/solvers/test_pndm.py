"""PNDM, PLMS and iPNDM against the formulas of Liu et al. 2022 and Zhang and Chen 2022, transcribed."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
T = 40
ABAR = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-3, 0.2, T))])
TABLE = jd.processes.Discrete.from_betas(np.linspace(1e-3, 0.2, T))
TIMES = np.array(
    [40, 34, 30, 22, 16, 12, 6, 2, 0]
)  # even but for the end, so that the middles of steps are in the table
ADAMS = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def eps_theta(x, t):
    alpha, sigma = np.sqrt(ABAR[t]), np.sqrt(1 - ABAR[t])
    return (x - alpha * rational(x, Level(t, alpha, sigma))) / sigma


def phi(x, eps, t, s):
    """The transfer part of Liu et al. 2022, as they write it, in abar."""
    a, b = ABAR[t], ABAR[s]
    return np.sqrt(b / a) * x - (b - a) / (np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b))) * eps


def prk(x, t, s):
    mid = (t + s) // 2
    e1 = eps_theta(x, t)
    e2 = eps_theta(phi(x, e1, t, mid), mid)
    e3 = eps_theta(phi(x, e2, t, mid), mid)
    e4 = eps_theta(phi(x, e3, t, s), s)
    return e1, (e1 + 2 * e2 + 2 * e3 + e4) / 6


def heun(x, t, s):
    e1 = eps_theta(x, t)
    return e1, (e1 + eps_theta(phi(x, e1, t, s), s)) / 2


def transcribed(x, times, order, ahead, steps):
    past = []
    for i, (t, s) in enumerate(pairwise(times)):
        if i < steps:
            e, mean = ahead(x, t, s)
            past = [e, *past]
        else:
            past = [eps_theta(x, t), *past][:order]
            mean = sum(w * e for w, e in zip(ADAMS[len(past)], past, strict=True))
        x = phi(x, mean, t, s)
    return x


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


CASES = {
    "pndm": (jd.solvers.pndm(TABLE), 4, prk, 3),
    "plms": (jd.solvers.plms(), 4, heun, 1),
    "ipndm": (jd.solvers.ipndm(), 4, None, 0),
    "ipndm 2": (jd.solvers.ipndm(2), 2, None, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_published_algorithm(name):
    solver, *algorithm = CASES[name]
    out = run(solver, TABLE(TIMES), start())
    np.testing.assert_allclose(out, transcribed(np.asarray(start()), TIMES, *algorithm), rtol=1e-9, atol=1e-10)


def test_of_order_1_is_ddim():
    levels = TABLE(TIMES)
    out = run(jd.solvers.ipndm(1), levels, start())
    np.testing.assert_allclose(out, run(jd.solvers.ddim(), levels, start()), rtol=1e-10)


def test_is_of_order_4_in_equal_steps_of_sigma_over_alpha_and_exact_for_a_cubic():
    coefficients = np.array([0.3, -0.5, 0.2, 0.7])
    s = np.linspace(3.0, 0.0, 9)
    denoise = lambda x, level: x - level.sigma * jnp.polyval(jnp.asarray(coefficients[::-1]), level.sigma)  # noqa: E731
    exact = np.diff(np.polynomial.Polynomial(coefficients).integ()(s))

    @partial(jax.jit, static_argnums=0)
    def path(solver):
        return jd.sample_path(denoise, solver, jd.processes.EDM()(s), jnp.ones((1, 1)), KEY)[1][:, 0, 0]

    for solver, first in ((jd.solvers.pndm(), 0), (jd.solvers.ipndm(), 3)):  # Simpson's rule is exact for a cubic too
        moves = np.diff(path(solver), prepend=1.0)
        np.testing.assert_allclose(moves[first:], exact[first:], rtol=1e-12)


@pytest.mark.parametrize(("name", "more"), [("pndm", 9), ("plms", 1), ("ipndm", 0)])
def test_counts_its_evaluations_and_those_of_the_warm_up_only_there(name, more):
    calls = []

    def counted(x, level):
        jax.debug.callback(lambda _: calls.append(1), x[0, 0])
        return rational(x, level)

    solver = CASES[name][0]
    sample = jax.jit(lambda x, levels: jd.sample(counted, solver, levels, x, KEY))
    sample(start(), TABLE(TIMES)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == len(TIMES) - 1 + more
    assert solver.nfe == 1


@pytest.mark.parametrize("factory", [jd.solvers.pndm, jd.solvers.plms])
def test_at_pure_noise_the_warm_up_is_runge_kuttas_on_the_flow(factory):
    # alpha = 0 leaves no x0 in x: the step is that of dx/dt = eps - x0, finite there.
    t, x = np.array([1.0, 0.7]), np.asarray(start())
    u = lambda x, t: (x - (1 - t) * rational(x, Level(t, 1 - t, t))) / t - rational(x, Level(t, 1 - t, t))  # noqa: E731
    h = t[1] - t[0]
    k1 = u(x, t[0])
    if factory is jd.solvers.plms:
        expected = x + h / 2 * (k1 + u(x + h * k1, t[1]))
    else:
        k2 = u(x + h / 2 * k1, 0.85)
        k3 = u(x + h / 2 * k2, 0.85)
        expected = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + u(x + h * k3, t[1]))
    np.testing.assert_allclose(run(factory(), jd.processes.Flow()(t), start()), expected, rtol=1e-10)


@pytest.mark.slow
def test_the_middle_of_a_step_is_a_level_of_the_process():
    seen, VP = [], jd.processes.VP()

    def noted(x, level):
        jax.debug.callback(lambda *fields: seen.append(fields), *level)
        return rational(x, level)

    jd.sample(noted, jd.solvers.pndm(VP), VP(np.array([0.9, 0.5])), start(), KEY)
    jax.effects_barrier()
    np.testing.assert_allclose([fields[0] for fields in seen], [0.9, 0.7, 0.7, 0.5], rtol=1e-12)
    for t, alpha, sigma in seen:
        np.testing.assert_allclose(VP(t)[1:], (alpha, sigma), rtol=1e-12)


@pytest.mark.parametrize("order", [0, 5])
def test_refuses_another_order(order):
    with pytest.raises(ValueError, match=f"order of ipndm must be 1, 2, 3 or 4, got {order}"):
        jd.solvers.ipndm(order)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_in_float32_too(name):
    solver = CASES[name][0]
    levels = TABLE(TIMES)
    out = run(solver, levels, start().astype(jnp.float32))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, run(solver, levels, start()), atol=2e-5)
