"""DDPM's ancestral sampling against Ho et al. 2020 and Nichol and Dhariwal 2021, transcribed with their betas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

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


def log_prob(x, level):
    return -jnp.sum(jnp.square(x - 0.4), axis=1) * (1 + level.sigma)


def test_a_gradient_moves_the_mean_by_the_variance_as_in_guided_diffusion():
    """condition_mean of the code of Dhariwal and Nichol 2021, transcribed: mean + variance * s grad log p(y | x_t).

    In the step to clean data their clipped variance, of a learned or large one, still moves the mean; ours is 0 there.
    """
    x, s = start(), jnp.asarray([0.0, 1.0, 2.0, 5.0, 10.0])
    gradient = jd.guidance.classifier_gradient(log_prob, s)
    denoise = {"small": rational, "large": rational, "learned": learned(frac_of)}

    @jax.jit
    def guided(x):
        solver = {name: jd.solvers.ddpm(name, gradient=gradient) for name in denoise}
        return {name: jd.sample(denoise[name], solver[name], LEVELS, x, KEY) for name in denoise}

    posterior = BETAS * (1 - ABAR[:-1]) / (1 - ABAR[1:])
    for name, out in guided(x).items():
        y = np.asarray(x)
        for i, t in enumerate(range(14, -1, -1)):  # theirs are counted from 0
            x0 = rational(y, PROCESS(t + 1))
            mean = np.sqrt(ABAR[t]) * BETAS[t] / (1 - ABAR[t + 1]) * x0
            mean += np.sqrt(1 - BETAS[t]) * (1 - ABAR[t]) / (1 - ABAR[t + 1]) * y
            if t > 0:
                low, high, frac = np.log(posterior[t]), np.log(BETAS[t]), np.asarray(frac_of(y))
                variance = np.exp({"small": low, "large": high, "learned": frac * high + (1 - frac) * low}[name])
                mean += variance * np.asarray(s)[:, None] * -2 * (y - 0.4) * (1 + np.sqrt(1 - ABAR[t + 1]))
                mean += np.sqrt(variance) * normal_like(fold_in(KEY, i), x)
            y = mean
        np.testing.assert_allclose(out, y, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(out[0], run(name, denoise[name], x)[0], rtol=1e-10)  # scale 0 is off


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large"])
def test_guidance_by_the_exact_gradient_ends_at_the_exact_posterior_with_order_1(variance):
    """Data N(m, c^2) and y = x_0 + r n. The sample is affine in x_T and all z: its law follows from its gradients."""
    m, c2, y, r2 = 0.7, 0.3, -0.2, 0.2
    var = 1 / (1 / c2 + 1 / r2)
    mean, errors = var * (m / c2 + y / r2), []
    for n in (100, 400):
        level = jd.processes.VP()(jnp.linspace(0.999, 0.01, n + 1))
        level = level._replace(t=jnp.arange(n + 1))  # what indexes the noise

        def denoise(x, at):
            return m + at.alpha * c2 / (at.alpha**2 * c2 + at.sigma**2) * (x - at.alpha * m)

        def log_prob(x, at):
            left = c2 * at.sigma**2 / (at.alpha**2 * c2 + at.sigma**2)  # the variance of x_0 given x_t
            return -0.5 * (y - denoise(x, at)[:, 0]) ** 2 / (left + r2)

        def final(x, z, level=level):
            noise = lambda key, x, cur, nxt: z[cur.t][None, None]  # noqa: E731
            solver = jd.solvers.ddpm(variance, gradient=jd.guidance.classifier_gradient(log_prob), noise_sampler=noise)
            return jd.sample(denoise, solver, level, x[None, None], KEY)[0, 0]

        first, last = (jax.tree.map(lambda field: field[i], level) for i in (0, -1))  # noqa: B023
        begin = jnp.asarray(first.alpha * mean)
        end, (by_x, by_z) = jax.jit(jax.value_and_grad(final, argnums=(0, 1)))(begin, jnp.zeros(n))
        end_var = by_x**2 * (first.alpha**2 * var + first.sigma**2) + jnp.sum(by_z**2)
        errors.append([end - last.alpha * mean, end_var - last.alpha**2 * var - last.sigma**2])
    slopes = np.log(np.abs(np.divide(*errors))) / np.log(4)
    print("slopes of mean and variance:", slopes, "errors:", errors[1])
    np.testing.assert_allclose(slopes, 1, atol=0.15)


def test_other_variances_are_refused():
    with pytest.raises(ValueError, match="gradient must be a function"):
        jd.solvers.ddpm(gradient=1.0)
    with pytest.raises(ValueError, match="small, large, learned, got 'fixed_small'"):
        jd.solvers.ddpm("fixed_small")
