"""Ancestral Euler against k-diffusion's algorithm in numpy, and against DDIM and DDPM, which it is in other words."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
EDM = jd.processes.EDM()
SIGMA = np.append(np.geomspace(20.0, 0.05, 8) * (1 + 0.2 * np.sin(np.arange(8))), 0.0)


def D(x, sigma):
    return rational(x, Level(sigma, np.float64(1), np.float64(sigma)))


def get_ancestral_step(sigma_from, sigma_to, eta):
    sigma_up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - sigma_up**2) ** 0.5, sigma_up


def sample_euler_ancestral(x, sigmas, eta, s_noise):
    for i in range(len(sigmas) - 1):
        sigma_down, sigma_up = get_ancestral_step(sigmas[i], sigmas[i + 1], eta)
        d = (x - D(x, sigmas[i])) / sigmas[i]
        x = x + d * (sigma_down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + np.asarray(normal_like(fold_in(KEY, i), x)) * s_noise * sigma_up
    return x


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


@jax.jit
def run_with(eta, s_noise, levels, x):
    return jd.sample(rational, jd.solvers.euler_ancestral(eta, s_noise), levels, x, KEY)


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


def test_is_the_published_algorithm_and_what_is_turned_compiles_nothing():
    run_with.clear_cache()
    for eta, s_noise in ((1.0, 1.0), (0.6, 1.1), (0.0, 1.0)):
        expected = sample_euler_ancestral(np.asarray(20 * start()), SIGMA, eta, s_noise)
        out = run_with(eta, s_noise, EDM(SIGMA), 20 * start())
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-10)
    assert run_with._cache_size() == 1


def test_is_ddim_of_the_same_eta_hence_ddpm_at_1_and_euler_at_0_from_pure_noise_too():
    # x / alpha of any process diffuses as EDM's x does; sigma_up is DDIM's standard deviation and sigma_down its rest.
    levels, x = jd.grids.by_time(jd.processes.Flow(), 6), start()
    denoise = jd.denoiser(lambda params, x, noise, cond: jnp.tanh(params * x), 0.3, jd.parameterize.velocity)

    @jax.jit
    def outs(eta):
        solvers = [jd.solvers.euler_ancestral(eta), jd.solvers.ddim(eta), jd.solvers.ddpm(), jd.solvers.euler()]
        return [jd.sample(denoise, solver, levels, x, KEY) for solver in solvers]

    for eta, others in ((1.0, [1, 2]), (0.4, [1]), (0.0, [1, 3])):
        ours = outs(eta)
        for i in others:
            np.testing.assert_allclose(ours[0], ours[i], rtol=1e-9, atol=1e-12)


def test_a_plain_0_draws_nothing():
    assert not jd.solvers.euler_ancestral(0).stochastic and jd.solvers.euler_ancestral(0.5).stochastic
    ode = run(jd.solvers.euler_ancestral(0.0), EDM(SIGMA), start())
    np.testing.assert_allclose(ode, run(jd.solvers.euler(), EDM(SIGMA), start()), rtol=1e-12)


@pytest.mark.slow
def test_after_a_long_step_in_float32_what_is_left_of_eps_is_not_rounded_away():
    # 1 - (1 - SNR_t / SNR_s) would be 0.
    level = lambda sigma: Level(*jnp.float32([sigma, 1.0, sigma]))  # noqa: E731
    down, up = jd.solvers.ancestral.ancestral_step(1.0, jnp.ones((1, 1), jnp.float32), level(1e4), level(0.1))
    np.testing.assert_allclose([down.sigma, up], [0.1**2 / 1e4, 0.1], rtol=1e-5)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_refuses_eta_outside_of_0_to_1(eta):
    for solver in (jd.solvers.euler_ancestral, jd.solvers.dpm_2_ancestral):
        with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, 1\]"):
            solver(eta)


@pytest.mark.slow
@pytest.mark.parametrize("factory", [jd.solvers.euler_ancestral, jd.solvers.dpm_2_ancestral])
def test_follows_one_brownian_path_as_steps_are_refined(factory):
    x = 4 * jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)))

    def final(noise, n):
        levels = jd.grids.by_lambda(EDM, n, start=4.0, end=0.15)
        return jax.jit(lambda x: jd.sample(CLUSTERS.denoise, factory(noise_sampler=noise), levels, x, KEY))(x)

    def apart(noise):
        return float(jnp.sqrt(jnp.mean(jnp.square(final(noise, 100) - final(noise, 400)))))

    path, fresh = apart(jd.noise.brownian(jax.random.key(5))), apart(jd.noise.white)
    print(factory.__name__, "brownian:", path, "white:", fresh)
    assert path < 0.05 and fresh > 0.5
