"""Euler and Heun against the algorithms of Karras et al. 2022, transcribed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
EDM = jd.processes.EDM()
SIGMA = np.append(np.geomspace(20.0, 0.05, 8), 0.0)
BOTH = pytest.mark.parametrize(("solver", "second_order"), [(jd.solvers.euler, False), (jd.solvers.heun, True)])


def D(x, sigma):
    return rational(x, Level(sigma, np.float64(1), np.float64(sigma)))


def karras(x, N, *, second_order, S_churn=0.0, S_noise=1.0, S_tmin=0.0, S_tmax=np.inf):
    """Algorithm 2; with S_churn = 0 it is algorithm 1 for sigma(t) = t, s(t) = 1."""
    t = SIGMA
    for i in range(N):
        gamma = min(S_churn / N, np.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0
        eps = S_noise * np.asarray(normal_like(fold_in(KEY, i), x))
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * eps
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if second_order and t[i + 1] != 0:
            d_prime = (x - D(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


def start():
    return jnp.asarray(20 * np.random.default_rng(0).normal(size=(5, 2)))


@BOTH
def test_is_algorithm_1(solver, second_order):
    out = run(solver(), EDM(SIGMA), start())
    np.testing.assert_allclose(out, karras(start(), 8, second_order=second_order), rtol=1e-9, atol=1e-10)


@BOTH
def test_churn_between_two_noise_levels_is_a_function_of_the_level(solver, second_order):
    churn = lambda level: jnp.where((level.sigma >= 0.3) & (level.sigma <= 9), 0.2, 0)  # noqa: E731
    out = run(solver(EDM, churn), EDM(SIGMA), start())
    settings = {"S_churn": 1.6, "S_tmin": 0.3, "S_tmax": 9.0}
    np.testing.assert_allclose(out, karras(start(), 8, second_order=second_order, **settings), rtol=1e-9, atol=1e-10)


@BOTH
def test_churn_is_algorithm_2(solver, second_order):
    levels = EDM(SIGMA)
    churned = jax.jit(lambda churn, x: jd.sample(rational, solver(EDM, churn, 1.007), levels, x, KEY))
    for S_churn in (0.0, 1.6, 80.0):  # the last is cut at sqrt(2) - 1
        out = churned(min(S_churn / 8, np.sqrt(2) - 1), start())
        expected = karras(start(), 8, second_order=second_order, S_churn=S_churn, S_noise=1.007)
        np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-9)


CHURNED_EULER = jd.solvers.euler(EDM, 0.05)
PROCESSES = {
    "vp": (jd.processes.VP(), np.linspace(0.9, 0.1, 5)),
    "flow": (jd.processes.Flow(), np.linspace(0.9, 0.1, 5)),
    "table": (jd.processes.Discrete.linear(20, 1e-3, 0.3), np.array([18, 12, 7, 2, 1])),
}


@pytest.mark.parametrize("name", ["table", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vp", "flow"))])
def test_churn_in_another_process_is_churn_of_the_rescaled_data(name):
    # x / alpha diffuses as EDM's x does: Euler with churn is the same map, noise included.
    process, t = PROCESSES[name]
    levels, x = process(t), start() / 20
    ours = run(jd.solvers.euler(process, 0.05), levels, x * levels.alpha[0])
    edm = run(CHURNED_EULER, EDM(levels.sigma / levels.alpha), x)
    np.testing.assert_allclose(ours, edm * levels.alpha[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_no_churn_is_the_deterministic_solver():
    # In float32, raising the noise by nothing rounds to a little up or a little down.
    x = (start() / 20).astype(jnp.float32)

    @jax.jit
    def both(levels, churn):
        solvers = {name: jd.solvers.heun(process, churn) for name, (process, _) in PROCESSES.items()}
        churned = {name: jd.sample(rational, solver, levels[name], x, KEY) for name, solver in solvers.items()}
        return churned, {name: jd.sample(rational, jd.solvers.heun(), levels[name], x, KEY) for name in levels}

    churned, plain = both({name: process(t) for name, (process, t) in PROCESSES.items()}, jnp.float32(0))
    for name in PROCESSES:
        assert churned[name].dtype == jnp.float32
        np.testing.assert_allclose(churned[name], plain[name], atol=1e-4)


@pytest.mark.slow
def test_pure_noise_is_not_raised():
    # At alpha = 0 there is no noisier level: the first step is that without churn, and nothing becomes NaN.
    flow = jd.processes.Flow()
    denoise = jd.denoiser(lambda params, x, noise, cond: jnp.tanh(params * x), 0.3, jd.parameterize.velocity)
    levels, x = jd.grids.by_time(flow, 4), start() / 20
    first = levels.at(slice(None, 2))
    np.testing.assert_allclose(
        jd.sample(denoise, jd.solvers.heun(flow, 0.2), first, x, KEY),
        jd.sample(denoise, jd.solvers.heun(), first, x, KEY),
        rtol=1e-12,
    )

    def total(churn, levels):
        return jnp.sum(jd.sample(denoise, jd.solvers.heun(flow, churn), levels, x, KEY))

    value_and_grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    for churn in (0.0, 0.2):
        value, grads = value_and_grad(jnp.float64(churn), levels)
        assert np.isfinite(value) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_a_table_cannot_be_raised_above_its_end():
    # A table ends at T: from there nothing can be added, and the level says so.
    process = jd.processes.Discrete.linear(20, 1e-3, 0.3)
    levels, x = process(np.array([20, 10])), start() / 20
    churned = run(jd.solvers.euler(process, 0.3), levels, x)
    np.testing.assert_allclose(churned, run(jd.solvers.euler(), levels, x), atol=1e-6)


def test_churn_is_traced_and_compiles_once():
    traces = []

    @jax.jit
    def f(churn, s_noise):
        traces.append(1)
        return jd.sample(rational, jd.solvers.heun(EDM, churn, s_noise), EDM(SIGMA), start(), KEY)

    outs = [f(*jnp.array(pair)) for pair in ((0.0, 1.0), (0.1, 1.0), (0.1, 1.1))]
    assert len(traces) == 1 and not np.allclose(outs[0], outs[1]) and not np.allclose(outs[1], outs[2])


@BOTH
def test_churn_needs_a_process_and_makes_a_solver_stochastic(solver, second_order):
    with pytest.raises(ValueError, match="pass process="):
        solver(churn=0.1)
    assert not solver().stochastic and solver(EDM, 0.1).stochastic
    for churn, s_noise in ((-0.1, 1.0), (np.nan, 1.0), (0.1, -1.0), (0.1, np.inf)):
        with pytest.raises(ValueError, match=r"(churn|s_noise) must be a finite number in \[0, inf\], got"):
            solver(EDM, churn, s_noise)
