"""DDIM against its paper's formulas in numpy, and against the solvers that it becomes at its ends."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
BETAS = np.linspace(1e-4, 0.2, 12)
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
TIMES = np.array([12, 9, 6, 3, 1, 0])
PROCESS = jd.processes.Discrete.from_betas(BETAS)


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


@jax.jit
def run_with(eta, levels, x):
    return jd.sample(rational, jd.solvers.ddim(eta), levels, x, KEY)


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_is_equation_12_with_equation_16(eta):
    levels, x = PROCESS(TIMES), start()
    out = run_with(eta, levels, x)
    for i, (t, s) in enumerate(pairwise(TIMES)):
        x0 = rational(x, PROCESS(t))
        eps = (x - np.sqrt(ABAR[t]) * x0) / np.sqrt(1 - ABAR[t])
        std = eta * np.sqrt((1 - ABAR[s]) / (1 - ABAR[t])) * np.sqrt(1 - ABAR[t] / ABAR[s])
        z = normal_like(fold_in(KEY, i), x)
        x = np.sqrt(ABAR[s]) * x0 + np.sqrt(1 - ABAR[s] - std**2) * eps + std * z
    np.testing.assert_allclose(out, x, rtol=1e-9, atol=1e-10)


def test_eta_1_is_ddpm_with_the_small_variance_and_eta_0_is_euler():
    levels, x = PROCESS(TIMES), start()
    np.testing.assert_allclose(run_with(1.0, levels, x), run(jd.solvers.ddpm("small"), levels, x), rtol=1e-9)
    none = run(jd.solvers.ddim(), levels, x)
    np.testing.assert_allclose(run(jd.solvers.euler(), levels, x), none, rtol=1e-12)
    np.testing.assert_allclose(run_with(0.0, levels, x), none, rtol=1e-12)
    # ... which is Euler's method for x / alpha in sigma / alpha (Song et al. 2020, eq. 13).
    for t, s in pairwise(TIMES):
        cur, nxt = np.sqrt((1 - ABAR[t]) / ABAR[t]), np.sqrt((1 - ABAR[s]) / ABAR[s])
        x0 = rational(x, PROCESS(t))
        eps = (x / np.sqrt(ABAR[t]) - x0) / cur
        x = np.sqrt(ABAR[s]) * (x / np.sqrt(ABAR[t]) + (nxt - cur) * eps)
    np.testing.assert_allclose(none, x, rtol=1e-9)


def test_eta_is_traced_and_compiles_once():
    levels, x = PROCESS(TIMES), start()
    run_with.clear_cache()
    outs = [run_with(eta, levels, x) for eta in (0.0, 0.3, 1.0)]
    assert run_with._cache_size() == 1 and not np.allclose(outs[0], outs[1]) and not np.allclose(outs[1], outs[2])
    np.testing.assert_allclose(outs[1], run(jd.solvers.ddim(0.3), levels, x), rtol=1e-10)


def test_gradients_are_finite_from_pure_noise_to_clean_data_even_where_nothing_is_left_of_eps():
    levels, x = jd.grids.by_time(jd.processes.Flow(), 4), start()
    denoise = jd.denoiser(lambda params, x, noise, cond: jnp.tanh(params * x), 0.3, jd.parameterize.velocity)

    def f(eta, levels):
        return jnp.sum(jd.sample(denoise, jd.solvers.ddim(eta), levels, x, KEY))

    grad = jax.jit(jax.grad(f, argnums=(0, 1)))
    for eta in (0.0, 0.5, 1.0):
        grads = grad(jnp.float64(eta), levels)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("eta", [-0.1, 1.5, 2])
def test_refuses_eta_outside_of_0_to_1(eta):
    with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, 1\]"):
        jd.solvers.ddim(eta)


def test_says_whether_it_draws_noise():
    assert not jd.solvers.ddim().stochastic and jd.solvers.ddim(0.5).stochastic
