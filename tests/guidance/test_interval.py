"""Guidance at some levels: outside, the second evaluation isn't run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance

LEVELS = jd.processes.EDM()(jnp.array([10.0, 5.0, 2.0, 1.0, 0.5, 0.0]))


def counting(counts, name, factor):
    def denoise(x, level):
        jax.debug.callback(lambda sigma: counts[name].append(float(sigma)), level.sigma)
        return factor * rational(x, level)

    return denoise


def test_outside_the_interval_the_second_network_is_not_run():
    counts = {"cond": [], "uncond": []}
    cond, uncond = (counting(counts, name, factor) for name, factor in (("cond", 1.0), ("uncond", 0.5)))
    x = jnp.ones((2, 3))

    @jax.jit
    def sample(low, high):
        denoise = guidance.interval(guidance.cfg(cond, uncond, 3.0), cond, low, high)
        return jd.sample(denoise, jd.solvers.ddim(), LEVELS, x, jax.random.key(0))

    for low, high, inside in ((0.5, 5.0, [5, 2, 1]), (0.0, np.inf, [10, 5, 2, 1, 0.5]), (20.0, 30.0, [])):
        counts["cond"], counts["uncond"] = [], []
        out = jax.block_until_ready(sample(low, high))
        jax.effects_barrier()
        assert counts == {"cond": [10, 5, 2, 1, 0.5], "uncond": inside}
        # The same by a scale that follows the level: cond outside, guided inside.
        expected = np.ones((2, 3))
        for cur, nxt in zip([10, 5, 2, 1, 0.5], [5, 2, 1, 0.5, 0], strict=True):
            x0 = rational(expected, Level(cur, 1.0, cur)) * (2.0 if cur in inside else 1.0)  # 0.5 + 3 (1 - 0.5)
            expected = x0 + nxt / cur * (expected - x0)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert sample._cache_size() == 1


def test_everything_is_inside_zero_to_infinity_and_bounds_may_differ_between_examples():
    x = jnp.ones((3, 2))
    guided, plain = (lambda x, level, c=c: jnp.full_like(x, c) for c in (1.0, 0.0))
    at = Level(jnp.zeros(3), jnp.array([0.0, 1.0, 0.5]), jnp.array([1.0, 1.0, 1.0]))  # sigma / alpha: inf, 1, 2
    for low, high, inside in (
        (0.0, jnp.inf, [1, 1, 1]),
        (1.0, 5.0, [0, 0, 1]),
        (0.5, 1.0, [0, 1, 0]),
        (jnp.array([0.0, 1.0, 1.0]), jnp.array([3.0, 2.0, 2.0]), [0, 0, 1]),
    ):
        np.testing.assert_array_equal(guidance.interval(guided, plain, low, high)(x, at)[:, 0], inside)
    one = Level(jnp.float32(1), jnp.float32(0), jnp.float32(1))
    np.testing.assert_array_equal(guidance.interval(guided, plain, 0.0, np.inf)(x, one), 1)
    np.testing.assert_array_equal(
        guidance.interval(guided, plain, 0.0, jnp.array([jnp.inf, 1, jnp.inf]))(x, one)[:, 0], [1, 0, 1]
    )


def test_a_row_that_refuses_pure_noise_still_does():
    levels, x = jd.processes.Flow()(jnp.array([1.0, 0.5, 0.0])), jnp.ones((2, 3))
    plain = jd.denoiser(lambda params, x, noise, cond: x, None, jd.parameterize.eps)
    denoise = guidance.interval(guidance.cfg(plain, plain, 2.0), plain, 0.1, 3.0)
    with pytest.raises(ValueError, match="cannot denoise pure noise"):
        jd.sample(denoise, jd.solvers.ddim(), levels, x, jax.random.key(0))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (np.nan, 1.0), (0.0, np.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low < high"):
        guidance.interval(rational, rational, low, high)
