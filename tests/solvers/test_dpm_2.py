"""DPM2 and its ancestral form against k-diffusion's algorithms in numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
EDM, VP, FLOW = jd.processes.EDM(), jd.processes.VP(), jd.processes.Flow()
SIGMA = np.append(np.geomspace(20.0, 0.05, 8) * (1 + 0.2 * np.sin(np.arange(8))), 0.0)


def D(x, sigma):
    return rational(x, Level(sigma, np.float64(1), np.float64(sigma)))


def to_d(x, sigma):
    return (x - D(x, sigma)) / sigma


def z(i, x):
    return np.asarray(normal_like(fold_in(KEY, i), x))


def sample_dpm_2(x, sigmas, gamma=0.0, s_noise=1.0):
    for i in range(len(sigmas) - 1):
        sigma_hat = sigmas[i] * (gamma + 1)
        x = x + z(i, x) * s_noise * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        d = to_d(x, sigma_hat)
        if sigmas[i + 1] == 0:
            x = x + d * (sigmas[i + 1] - sigma_hat)
        else:
            sigma_mid = np.exp((np.log(sigma_hat) + np.log(sigmas[i + 1])) / 2)
            x_2 = x + d * (sigma_mid - sigma_hat)
            x = x + to_d(x_2, sigma_mid) * (sigmas[i + 1] - sigma_hat)
    return x


def sample_dpm_2_ancestral(x, sigmas, eta, s_noise):
    for i in range(len(sigmas) - 1):
        sigma_up = eta * (sigmas[i + 1] ** 2 * (sigmas[i] ** 2 - sigmas[i + 1] ** 2) / sigmas[i] ** 2) ** 0.5
        sigma_down = (sigmas[i + 1] ** 2 - sigma_up**2) ** 0.5
        d = to_d(x, sigmas[i])
        if sigma_down == 0:
            x = x + d * (sigma_down - sigmas[i])
        else:
            sigma_mid = np.exp((np.log(sigmas[i]) + np.log(sigma_down)) / 2)
            x_2 = x + d * (sigma_mid - sigmas[i])
            x = x + to_d(x_2, sigma_mid) * (sigma_down - sigmas[i])
            x = x + z(i, x) * s_noise * sigma_up
    return x


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


@jax.jit
def run_ancestral(eta, s_noise, levels, x):
    return jd.sample(rational, jd.solvers.dpm_2_ancestral(eta, s_noise), levels, x, KEY)


@jax.jit
def run_churned(churn, s_noise, levels, x):
    return jd.sample(rational, jd.solvers.dpm_2(EDM, churn, s_noise), levels, x, KEY)


def start():
    return jnp.asarray(20 * np.random.default_rng(0).normal(size=(5, 2)))


def test_dpm_2_is_the_published_algorithm_with_and_without_churn():
    out = run(jd.solvers.dpm_2(), EDM(SIGMA), start())
    np.testing.assert_allclose(out, sample_dpm_2(np.asarray(start()), SIGMA), rtol=1e-9, atol=1e-10)
    for gamma, s_noise in ((0.0, 1.0), (0.2, 1.007)):
        churned = run_churned(gamma, s_noise, EDM(SIGMA), start())
        expected = sample_dpm_2(np.asarray(start()), SIGMA, gamma, s_noise)
        np.testing.assert_allclose(churned, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_dpm_2_ancestral_is_the_published_algorithm_and_what_is_turned_compiles_nothing():
    run_ancestral.clear_cache()
    for eta, s_noise in ((1.0, 1.0), (0.6, 1.1)):
        expected = sample_dpm_2_ancestral(np.asarray(start()), SIGMA, eta, s_noise)
        out = run_ancestral(eta, s_noise, EDM(SIGMA), start())
        np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-9)
    none = run_ancestral(0.0, 1.0, EDM(SIGMA), start())
    assert run_ancestral._cache_size() == 1
    np.testing.assert_allclose(none, run(jd.solvers.dpm_2(), EDM(SIGMA), start()), rtol=1e-10)
    np.testing.assert_allclose(none, run(jd.solvers.dpm_2_ancestral(0), EDM(SIGMA), start()), rtol=1e-10)
    assert not jd.solvers.dpm_2_ancestral(0).stochastic and jd.solvers.dpm_2_ancestral().stochastic


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
def test_another_process_is_edm_of_the_rescaled_data(process):
    levels, x = process(np.array([0.9, 0.7, 0.6, 0.3, 0.1])), start() / 20
    for solver in (jd.solvers.dpm_2(process), jd.solvers.dpm_2_ancestral(0.7, process=process)):
        ours = run(solver, levels, x * levels.alpha[0])
        edm = run(solver, EDM(levels.sigma / levels.alpha), x)
        np.testing.assert_allclose(ours, edm * levels.alpha[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_step_from_pure_noise_is_eulers_and_to_clean_data_the_denoiser():
    denoise = jd.denoiser(lambda params, x, noise, cond: jnp.tanh(params * x), 0.3, jd.parameterize.velocity)
    names = "dpm_2", "euler", "dpm_2_ancestral", "euler_ancestral"

    @jax.jit
    @jax.vmap
    def steps(levels):
        return [jd.sample(denoise, getattr(jd.solvers, name)(), levels, start() / 20, KEY) for name in names]

    ode, euler, ancestral, euler_ancestral = steps(FLOW(np.array([[1.0, 0.6], [1.0, 0.0], [0.6, 0.0]])))
    np.testing.assert_allclose(ode, euler, rtol=1e-12)
    np.testing.assert_allclose(ancestral, euler_ancestral, rtol=1e-12)


@pytest.mark.slow
def test_gradients_are_finite_from_pure_noise_to_clean_data_even_where_nothing_is_left_of_eps():
    denoise = jd.denoiser(lambda params, x, noise, cond: jnp.tanh(params * x), 0.3, jd.parameterize.velocity)
    levels = jd.grids.by_time(FLOW, 4)

    @jax.jit
    @jax.vmap
    def grads(eta):
        def f(eta, levels):
            return jnp.sum(jd.sample(denoise, jd.solvers.dpm_2_ancestral(eta), levels, start() / 20, KEY))

        return jax.grad(f, argnums=(0, 1))(eta, levels)

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads(jnp.array([0.0, 0.5, 1.0]))))


def told_the_time(x, level):
    """A denoiser like a VP network's: it is told t, and trusts that x is at VP's level of that time."""
    return BLOB.denoise(x, VP(level.t))


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP, None], ids=["process", "no process"])
def test_order_where_the_network_is_told_the_time(process):
    x, errors = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2))), []
    for n in (50, 200):
        levels = jd.grids.by_time(VP, n, start=0.8, end=0.1)
        first, last = (jax.tree.map(lambda field: field[i], levels) for i in (0, -1))  # noqa: B023
        out = jax.jit(lambda x: jd.sample(told_the_time, jd.solvers.dpm_2(process), levels, x, KEY))(x)  # noqa: B023
        errors.append(float(jnp.sqrt(jnp.mean((out - BLOB.flow(x, first, last)) ** 2))))
    slope = np.log(errors[0] / errors[1]) / np.log(4)
    print("slope", slope, errors)
    np.testing.assert_allclose(slope, 2, atol=0.15)


def test_churn_needs_a_process_and_makes_it_stochastic():
    with pytest.raises(ValueError, match="pass process="):
        jd.solvers.dpm_2(churn=0.1)
    assert not jd.solvers.dpm_2().stochastic and jd.solvers.dpm_2(EDM, 0.1).stochastic
