"""CFG++: the published algorithm, as a scale for DDIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance


def other(x, level):
    return 0.5 * rational(x + 0.2, level)


START = np.random.default_rng(0).normal(size=(3, 2))


def published(x, scale, levels, eps_of=other):
    """Chung et al. 2024: denoise with the guided model, renoise with the unconditional one (from x0, at any level)."""
    t, alpha, sigma = (np.asarray(field, np.float64) for field in levels)
    for i in range(len(t) - 1):
        cur = Level(t[i], alpha[i], sigma[i])
        cond, uncond = rational(x, cur), eps_of(x, cur)
        x0 = uncond + scale * (cond - uncond)
        x = alpha[i + 1] * x0 + sigma[i + 1] * (x - alpha[i] * uncond) / sigma[i]
    return x


@pytest.mark.parametrize("process", ["Flow", "VP", "EDM"])
def test_ddim_with_it_is_the_published_algorithm(process, x64):
    times = {"Flow": [1, 0.7, 0.45, 0.2, 0], "VP": [1, 0.6, 0.3, 0.05, 0.01], "EDM": [80, 5, 1, 0.1, 0]}[process]
    levels = getattr(jd.processes, process)()(jnp.array(times, jnp.float64))  # Flow: from alpha = 0 to sigma = 0
    x, solver = jnp.asarray(START), jd.solvers.ddim()

    @jax.jit
    def run(scale, levels):
        return jd.sample(guidance.cfg_pp(rational, other, scale, levels), solver, levels, x, jax.random.key(0))

    for scale in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(run(scale, levels), published(START, scale, levels), rtol=1e-10, atol=1e-12)
    assert run._cache_size() == 1
    # 0 is the unconditional model.
    plain = jax.jit(lambda: jd.sample(other, solver, levels, x, jax.random.key(0)))()
    np.testing.assert_allclose(run(0.0, levels), plain, rtol=1e-12)


def test_levels_are_found_through_rounding():
    # 200 uneven steps around 0.1 from lam = -10 to 10: at the ends alpha, or sigma, is 1 but for 1e-9.
    lam = np.linspace(-10, 10, 201) + 0.03 * np.sin(np.arange(201))
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    levels = Level(lam, alpha, alpha * np.exp(-lam))
    at = Level(*(field[:-1].astype(np.float32) for field in levels))
    at = at._replace(alpha=at.alpha * np.float32(1.001))  # far more than rounding
    expected = 1 / (1 - np.exp(lam[:-1] - lam[1:]))
    np.testing.assert_allclose(gains(levels, at), expected, rtol=1e-4)


def test_an_inner_point_takes_the_nearest_levels_step_and_gradients_by_the_grid_are_finite():
    # sigma / alpha = inf, 2, 1, 0: the first and the last h are infinite.
    levels = Level(*(np.array(field, np.float32) for field in ((3, 2, 1, 0), (0, 1, 1, 1), (1, 2, 1, 0))))
    at = Level(*(np.array(field, np.float32) for field in ([0] * 5, [0, 1, 1, 1, 1], [1, 5, 1.9, 1.1, 0.01])))
    np.testing.assert_allclose(gains(levels, at), [1, 2, 2, 1, 1], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda levels: gains(levels, at).sum()))(levels)
    assert np.all(np.isfinite(gradient.alpha)) and np.all(np.isfinite(gradient.sigma)) and np.any(gradient.sigma)


@jax.jit
def gains(levels, at):
    """What a scale of 1 becomes at each of these levels."""
    ones, zeros = (lambda x, level, c=c: jnp.full_like(x, c) for c in (1.0, 0.0))
    return guidance.cfg_pp(ones, zeros, 1.0, levels)(jnp.zeros((len(at.t), 1)), at)[:, 0]


def test_one_step_is_the_interpolated_denoiser_and_euler_is_ddim():
    levels, x = Level(*map(np.float32, ([3, 0], [1, 1], [3, 0]))), START.astype(np.float32)

    @jax.jit
    def run():
        denoise = guidance.cfg_pp(rational, other, 0.6, levels)
        return [jd.sample(denoise, s, levels, x, jax.random.key(0)) for s in (jd.solvers.ddim(), jd.solvers.euler())]

    cur = Level(3.0, 1.0, 3.0)
    for out in run():
        np.testing.assert_allclose(out, 0.4 * other(x, cur) + 0.6 * rational(x, cur), rtol=1e-5, atol=1e-6)


def test_another_scale_and_levels_that_are_no_grid_are_refused():
    grid = jd.processes.EDM()(jnp.array([3.0, 0.0]))
    for scale in (-0.1, 7.5, np.nan):
        with pytest.raises(ValueError, match=r"scale must be a finite number in \[0, 1\]"):
            guidance.cfg_pp(rational, other, scale, grid)
    for levels in (grid.at(0), grid.at(slice(None, 1))):
        with pytest.raises(ValueError, match=r"\[N \+ 1\]"):
            guidance.cfg_pp(rational, other, 0.6, levels)
