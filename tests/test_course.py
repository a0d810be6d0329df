"""The worked numbers of the course that jaxdiff follows, with the course's own slips named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.optimized import OPTIMIZED

from jaxdiff import guidance, levels, parameterize, processes
from jaxdiff.levels import Level

ALPHA = np.array([0.90, 0.80, 0.70])
X0 = np.array([1.0, 2.0, -1.0, 0.5])
EPS_1 = np.array([0.5, -0.3, 0.8, -0.2])
EPS_2 = np.array([-0.4, -0.2, -0.4, 1.0])


def _step(x, eps, process, t):
    mean, std = levels.q_transition(x, process(jnp.asarray(t - 1)), process(jnp.asarray(t)))
    return mean + std * eps


def x0_of(prediction, F, x, level):
    return parameterize.to_x0(parameterize.scalings(prediction, level, x), x, F)


def test_first_step_of_the_four_dimensional_example():
    """x_1 = sqrt(0.9) x_0 + sqrt(0.1) eps_1 = [1.11, 1.80, -0.70, 0.41]: right in the course, to two decimals."""
    process = processes.Discrete.from_betas(1 - ALPHA)
    x1 = _step(jnp.asarray(X0, jnp.float32), jnp.asarray(EPS_1, jnp.float32), process, 1)
    np.testing.assert_allclose(x1, np.sqrt(0.9) * X0 + np.sqrt(0.1) * EPS_1, atol=1e-6)
    np.testing.assert_allclose(x1, [1.11, 1.80, -0.70, 0.41], atol=0.005)


def test_second_step_of_the_four_dimensional_example():
    """The course prints x_2 = [0.79, 1.43, -0.81, 0.82]; its own formula and noise give [0.81, 1.52, -0.80, 0.81].

    sqrt(0.8) x_1 + sqrt(0.2) eps_2 in full precision is [0.811, 1.523, -0.801, 0.815]. The course's second entry, 1.43,
    is what eps_2 = -0.4 would give there instead of the stated -0.2 (1.612 - 0.179); its other entries are off
    by up to 0.021, more than rounding x_1 to two decimals explains in the first.
    """
    process = processes.Discrete.from_betas(1 - ALPHA)
    x1 = _step(jnp.asarray(X0, jnp.float32), jnp.asarray(EPS_1, jnp.float32), process, 1)
    x2 = _step(x1, jnp.asarray(EPS_2, jnp.float32), process, 2)
    by_hand = np.sqrt(0.8) * (np.sqrt(0.9) * X0 + np.sqrt(0.1) * EPS_1) + np.sqrt(0.2) * EPS_2
    np.testing.assert_allclose(x2, by_hand, atol=1e-6)
    np.testing.assert_allclose(x2, [0.811, 1.523, -0.801, 0.815], atol=5e-4)
    course = np.array([0.79, 1.43, -0.81, 0.82])
    assert np.abs(x2 - course).argmax() == 1
    np.testing.assert_allclose(np.delete(x2, 1), np.delete(course, 1), atol=0.022)
    second_with_another_noise = np.sqrt(0.8) * float(x1[1]) + np.sqrt(0.2) * -0.4
    np.testing.assert_allclose(second_with_another_noise, course[1], atol=0.005)


def test_norms_of_the_four_dimensional_example():
    """The course's norms 2.45, 2.41, 2.19 of x_0, x_1, x_2 are slips: they are 2.50, 2.26 and 2.07.

    Its own printed x_2 has norm 2.00, which is no 2.19 either.
    """
    process = processes.Discrete.from_betas(1 - ALPHA)
    x0 = jnp.asarray(X0, jnp.float32)
    x1 = _step(x0, jnp.asarray(EPS_1, jnp.float32), process, 1)
    x2 = _step(x1, jnp.asarray(EPS_2, jnp.float32), process, 2)
    norms = [float(jnp.linalg.norm(x)) for x in (x0, x1, x2)]
    np.testing.assert_allclose(norms, [2.50, 2.264, 2.07], atol=0.005)
    np.testing.assert_allclose(norms[0], 2.5, atol=1e-6)  # sqrt(1 + 4 + 1 + 0.25)
    assert all(abs(right - course) > 0.04 for right, course in zip(norms, (2.45, 2.41, 2.19), strict=True))


def test_closed_form_of_the_four_dimensional_example():
    """abar = 0.9, 0.72, 0.504; the two noises add up to one of variance 1 - abar_2 = 0.28."""
    process = processes.Discrete.from_betas(1 - ALPHA)
    mean, std = levels.q_mean_std(jnp.asarray(X0, jnp.float32), process(jnp.asarray(2)))
    np.testing.assert_allclose(np.square(process.alpha), [1, 0.9, 0.72, 0.504], atol=1e-12)
    np.testing.assert_allclose(mean, np.sqrt(0.72) * X0, rtol=1e-6)
    np.testing.assert_allclose(std**2, 0.8 * 0.1 + 0.2, rtol=1e-6)
    eps = (np.sqrt(0.8 * 0.1) * EPS_1 + np.sqrt(0.2) * EPS_2) / np.sqrt(0.28)
    x2 = levels.q_sample(jnp.asarray(X0, jnp.float32), jnp.asarray(eps, jnp.float32), process(jnp.asarray(2)))
    np.testing.assert_allclose(x2, [0.811, 1.523, -0.801, 0.815], atol=5e-4)


def test_one_shot_noising_and_squared_error():
    """abar = 0.64: x_t = 0.8 x_0 + 0.6 eps = [0.76, -0.82, 0.90, 0.72]; squared error summed 0.10. No slip here."""
    x0, eps = jnp.array([0.8, -0.5, 0.3, 1.2]), jnp.array([0.2, -0.7, 1.1, -0.4])
    level = Level(jnp.array(1), jnp.sqrt(0.64), jnp.sqrt(1 - 0.64))
    x = levels.q_sample(x0, eps, level)
    np.testing.assert_allclose(x, [0.76, -0.82, 0.90, 0.72], atol=1e-6)
    np.testing.assert_allclose(jnp.sum((jnp.array([0.3, -0.5, 0.9, -0.3]) - eps) ** 2), 0.10, atol=1e-6)
    np.testing.assert_allclose(x0_of(parameterize.eps, eps, x, level), x0, atol=1e-6)


def test_classifier_guided_score():
    """score + 2 grad log p(y|x) = [0.7, 0.5, -0.2], through denoisers and Tweedie's formula. No slip here."""
    score, grad = jnp.array([[0.5, -0.3, 0.2]]), jnp.array([[0.1, 0.4, -0.2]])
    level = Level(jnp.array(0.5), jnp.array(0.8), jnp.array(0.6))
    x = jnp.array([[0.3, -1.0, 2.0]])
    denoise = guidance.classifier(
        lambda x, level: x0_of(parameterize.score, score, x, level),
        lambda x, level: jnp.sum(grad * x, axis=1),
        2.0,
    )
    guided = levels.score(levels.from_x0(denoise(x, level), x, level), level)
    np.testing.assert_allclose(guided, [[0.7, 0.5, -0.2]], atol=1e-6)


def test_mu_theta_is_the_posterior_mean_at_x0_hat():
    """(x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t), Ho et al. eq. 11, at every t of the linear table."""
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 1000, 3))
    mu = (x - (betas / np.sqrt(1 - abar))[:, None] * eps) / np.sqrt(1 - betas)[:, None]

    process, t = processes.Discrete.linear(), jnp.arange(1, 1001)
    cur, nxt = process(t), process(t - 1)
    x, eps = jnp.asarray(x, jnp.float32), jnp.asarray(eps, jnp.float32)
    mean, _ = levels.posterior(x0_of(parameterize.eps, eps, x, cur), x, cur, nxt)
    # float32: at t = 1000 x0_hat is 150 times as large as x, so its coefficient's rounding is what remains.
    np.testing.assert_allclose(mean, mu, rtol=3e-5, atol=3e-5)


def test_linear_table_ends_in_a_standard_normal_as_far_as_abar_allows():
    """abar_1000 = 4.0e-5: the mean keeps 0.6 % of x_0 and the variance is short of 1 by 4e-5."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[-1]
    assert 4.0e-5 < abar < 4.1e-5
    level = processes.Discrete.linear()(jnp.asarray(1000))
    np.testing.assert_allclose(level.alpha, np.sqrt(abar), rtol=1e-5)
    np.testing.assert_allclose(level.sigma**2, 1 - abar, rtol=1e-6)

    n = 200_000
    x0 = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)  # far from normal
    x = np.asarray(levels.q_sample(x0, jax.random.normal(jax.random.key(0), (n,)), level), np.float64)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / n)  # var(eps^4) = 105 - 9


@pytest.mark.slow
def test_a_thousand_steps_have_the_closed_forms_mean_and_variance():
    """Iterating q(x_t | x_{t-1}): mean and variance exactly, by their recursion, and 40,000 samples."""
    process, x0, n = processes.Discrete.linear(), 1.5, 40_000

    def step(carry, t):
        mean, var, x, key = carry
        key, now = jax.random.split(key)
        cur, nxt = process(t - 1), process(t)
        mean, std = levels.q_transition(mean, cur, nxt)
        scale, _ = levels.q_transition(jnp.ones(()), cur, nxt)
        moved, _ = levels.q_transition(x, cur, nxt)
        x = moved + std * jax.random.normal(now, x.shape)
        var = scale**2 * var + std**2
        return (mean, var, x, key), (mean, var, jnp.mean(x), jnp.var(x))

    start = (jnp.asarray(x0), jnp.asarray(0.0), jnp.full(n, x0), jax.random.key(1, impl="rbg"))
    run = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(1, 1001)), compiler_options=OPTIMIZED)
    _, path = run(start)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    mean, var, sample_mean, sample_var = (np.asarray(p, np.float64) for p in path)
    np.testing.assert_allclose(mean, np.sqrt(abar) * x0, rtol=2e-4)
    np.testing.assert_allclose(var, 1 - abar, rtol=2e-4)
    assert np.abs(sample_mean - np.sqrt(abar) * x0).max() < 5 * np.sqrt(1 / n)
    assert np.abs(sample_var / (1 - abar) - 1).max() < 5 * np.sqrt(2 / n)
