"""CFG-Zero*: the published algorithm on a flow, and what it means for other processes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance


def other(x, level):
    return 0.5 * rational(x + 0.2, level)


START = np.random.default_rng(0).normal(size=(3, 4))


def published(x, scale, times, steps_of_zero):
    """Fan et al. 2025, on velocities v = eps - x_0 by Euler's method, t from 1 to 0."""
    for i, (t, s) in enumerate(pairwise(times)):
        c, u = ((x - d(x, Level(t, 1 - t, t))) / t for d in (rational, other))
        star = np.sum(c * u, axis=1, keepdims=True) / np.sum(u * u, axis=1, keepdims=True)
        v = star * u + scale * (c - star * u)
        x = x + (s - t) * (0 if i < steps_of_zero else v)
    return x


def test_ddim_on_a_flow_with_it_is_the_published_algorithm(x64):
    times = [1, 0.9, 0.7, 0.45, 0.2, 0.0]
    levels, x = jd.processes.Flow()(jnp.array(times)), jnp.asarray(START)

    @jax.jit
    def run(scale, zero_init):
        denoise = guidance.cfg_zero_star(rational, other, scale, zero_init=zero_init)
        return jd.sample(denoise, jd.solvers.ddim(), levels, x, jax.random.key(0))

    for scale, zero_init, steps in ((3.0, 1.0, 0), (3.0, 0.96, 1), (1.5, 0.8, 2), (3.0, 0.0, 5)):
        expected = published(START, scale, times, steps)
        np.testing.assert_allclose(run(scale, zero_init), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run(3.0, 0.0), START, rtol=1e-12)  # nothing moves


def test_parallel_velocities_are_not_guided(x64):
    # c = 0.3 u: the optimized scale makes the difference vanish, whatever the scale.
    at, x = Level(*map(jnp.float64, (0.4, 0.6, 0.4))), jnp.asarray(START)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    cond, uncond = (lambda x, level, k=k: x - level.sigma * k * u for k in (0.3, 1.0))
    for scale in (0.0, 1.0, 7.0):
        np.testing.assert_allclose(guidance.cfg_zero_star(cond, uncond, scale)(x, at), cond(x, at), rtol=1e-12)


def test_another_process_is_the_flow_of_the_rescaled_x(x64):
    alpha, sigma, x = 0.3, 0.9, jnp.asarray(START)
    total = alpha + sigma
    levels = [Level(*map(jnp.float64, (0, a, s))) for a, s in ((alpha, sigma), (alpha / total, sigma / total))]
    denoise = guidance.cfg_zero_star(rational, other_of_ratio, 3.0)
    np.testing.assert_allclose(denoise(x, levels[0]), denoise(x / total, levels[1]), rtol=1e-10)


def other_of_ratio(x, level):
    return 0.5 * rational(x + 0.2 * level.alpha, level)


def test_a_threshold_outside_the_flows_time_is_refused():
    for zero_init in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"zero_init must be a finite number in \[0, 1\]"):
            guidance.cfg_zero_star(rational, other, 2.0, zero_init=zero_init)
