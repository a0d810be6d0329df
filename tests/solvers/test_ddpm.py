"""DDPM's ancestral sampling against Ho et al. 2020 and Nichol and Dhariwal 2021, transcribed with their betas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import rational

import jaxdiff as jd
from jaxdiff import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
BETAS = np.linspace(1e-3, 0.25, 15)
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
PROCESS = jd.processes.Discrete.from_betas(BETAS)


def frac_of(x):
    return jax.nn.sigmoid(x)  # any number in [0, 1] for each pixel


LEVELS = Level(np.arange(15, -1, -1), np.sqrt(ABAR[::-1]), np.sqrt(1 - ABAR[::-1]))


@partial(jax.jit, static_argnums=(0, 1))
def run(variance, denoise, x):
    return jd.sample(denoise, jd.solvers.ddpm(variance), LEVELS, x, KEY)


def start():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


def learned(frac):
    return lambda x, level: (rational(x, level), frac(x))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_is_algorithm_2(variance):
    x = start()
    out = run(variance, learned(frac_of) if variance == "learned" else rational, x)
    for i, t in enumerate(range(15, 0, -1)):
        beta, alpha = BETAS[t - 1], 1 - BETAS[t - 1]
        x0 = rational(x, PROCESS(t))
        eps = (x - np.sqrt(ABAR[t]) * x0) / np.sqrt(1 - ABAR[t])
        mean = (x - beta / np.sqrt(1 - ABAR[t]) * eps) / np.sqrt(alpha)  # line 4
        # Equation 7 has the same mean from x0.
        by_x0 = np.sqrt(ABAR[t - 1]) * beta * x0 + np.sqrt(alpha) * (1 - ABAR[t - 1]) * x
        np.testing.assert_allclose(mean, by_x0 / (1 - ABAR[t]), rtol=1e-8, atol=1e-10)
        z = normal_like(fold_in(KEY, i), x) if t > 1 else 0  # line 3
        if t > 1:
            beta_tilde = (1 - ABAR[t - 1]) / (1 - ABAR[t]) * beta
            frac = {"small": 0, "large": 1, "learned": frac_of(x)}[variance]
            z *= np.sqrt(np.exp(frac * np.log(beta) + (1 - frac) * np.log(beta_tilde)))
        x = mean + z
    np.testing.assert_allclose(out, x, rtol=1e-8, atol=1e-9)


def test_learned_variance_lies_between_small_and_large():
    x = start()
    low, high = (run("learned", learned(lambda x, f=f: jnp.full_like(x, f)), x) for f in (0.0, 1.0))
    np.testing.assert_allclose(low, run("small", rational, x), rtol=1e-10)
    np.testing.assert_allclose(high, run("large", rational, x), rtol=1e-10)
    assert not np.allclose(low, high)


def test_the_gradient_of_a_learned_variance_is_finite():
    def f(bias):
        return jnp.sum(run("learned", learned(lambda x: jax.nn.sigmoid(x + bias)), start()))

    assert np.isfinite(jax.grad(f)(jnp.float64(0.1)))


def test_other_variances_are_refused():
    with pytest.raises(ValueError, match="small, large, learned, got 'fixed_small'"):
        jd.solvers.ddpm("fixed_small")
