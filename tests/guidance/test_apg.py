"""Adaptive projected guidance: CFG where nothing is projected, and orthogonal to the answer where all is."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance

KEY = jax.random.key(0)
AT = Level(*map(jnp.float32, (0.3, 0.8, 0.6)))
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3)), jnp.float32)


def other(x, level):
    return 0.5 * jnp.sin(x) + 0.1


COND, UNCOND = (np.asarray(d(X, AT), np.float64) for d in (rational, other))


def inner(a, b):
    return np.sum(np.asarray(a, np.float64) * b, axis=(1, 2))


def test_with_the_whole_parallel_part_it_is_cfg():
    out = guidance.apg(rational, other, 5.0, eta=1.0)(X, AT)
    np.testing.assert_allclose(out, guidance.cfg(rational, other, 5.0)(X, AT), rtol=1e-5, atol=1e-5)
    for eta in (0.0, 1.0):
        np.testing.assert_allclose(guidance.apg(rational, other, 1.0, eta=eta)(X, AT), COND, rtol=1e-6)


def test_what_is_left_is_orthogonal_and_the_parallel_part_comes_back_by_eta():
    pulls = [(np.asarray(guidance.apg(rational, other, 3.0, eta=eta)(X, AT)) - COND) / 2 for eta in (0.0, 0.25, 1.0)]
    np.testing.assert_allclose(inner(pulls[0], COND), 0, atol=1e-5)
    assert np.all(np.abs(inner(pulls[2], COND)) > 0.05)
    np.testing.assert_allclose(inner(pulls[1], COND), 0.25 * inner(COND - UNCOND, COND), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pulls[1], 0.75 * pulls[0] + 0.25 * pulls[2], rtol=1e-4, atol=1e-5)


def test_the_difference_is_no_longer_than_the_radius_each_example_for_itself():
    lengths = np.sqrt(inner(COND - UNCOND, COND - UNCOND))
    radius = float(np.median(lengths))  # some are longer
    pull = (np.asarray(guidance.apg(rational, other, 3.0, eta=1.0, norm_threshold=radius)(X, AT)) - COND) / 2
    expected = (COND - UNCOND) * np.minimum(1, radius / lengths)[:, None, None]
    np.testing.assert_allclose(pull, expected, rtol=1e-4, atol=1e-5)


def published(x, scale, momentum, sigmas):
    """Sadat et al. 2024 by Euler's method in sigma, alpha = 1, with eta = 0.2 and r = 1.5."""
    total = 0
    for cur, nxt in pairwise(sigmas):
        cond, uncond = (d(x, Level(cur, 1.0, cur)) for d in (rational, wide))
        total = cond - uncond + momentum * total
        pull = total * np.minimum(1, 1.5 / np.sqrt(np.sum(total**2, axis=(1, 2), keepdims=True)))
        unit = cond / np.sqrt(np.sum(cond**2, axis=(1, 2), keepdims=True))
        parallel = np.sum(pull * unit, axis=(1, 2), keepdims=True) * unit
        x0 = cond + (scale - 1) * (pull - parallel + 0.2 * parallel)
        x = x0 + nxt / cur * (x - x0)
    return x


def wide(x, level):
    return 0.5 * rational(x + 0.2, level)


def test_momentum_is_the_published_algorithm_whatever_the_solver_asks(x64):
    sigmas = [10.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    levels, x = jd.processes.EDM()(jnp.array(sigmas)), jnp.asarray(X, jnp.float64)
    ddim = jd.solvers.ddim()

    def copying(denoise, key, x, state, cur, nxt):  # asks at another x than the step's, as far as Python sees
        return ddim.step(denoise, key, x + 0, state, cur, nxt)

    @jax.jit
    def run(scale, momentum):
        options = {"eta": 0.2, "norm_threshold": 1.5}
        plain = jd.sample(guidance.apg(rational, wide, scale, **options), ddim, levels, x, KEY)
        solvers = (guidance.apg_momentum(s, wide, scale, momentum=momentum, **options) for s in (ddim, other_ddim))
        return plain, *(jd.sample(rational, solver, levels, x, KEY) for solver in solvers)

    other_ddim = ddim._replace(step=copying)
    for momentum in (-0.5, 0.0):
        plain, *with_momentum = run(5.0, momentum)
        for out in with_momentum:
            np.testing.assert_allclose(out, published(np.asarray(X, float), 5.0, momentum, sigmas), rtol=1e-9)
        assert np.allclose(plain, with_momentum[0], rtol=1e-9) == (momentum == 0)


def test_a_momentum_that_grows_is_refused():
    with pytest.raises(ValueError, match=r"momentum must be a finite number in \[-1, 1\], got 1.5"):
        guidance.apg_momentum(jd.solvers.ddim(), other, 2.0, momentum=1.5)


def test_flow_maps_are_refused():
    with pytest.raises(ValueError, match="told both ends of a step"):
        guidance.apg_momentum(jd.solvers.flow_map(), other, 2.0)


def test_a_radius_that_is_not_positive_is_refused():
    for radius in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="norm_threshold must be above 0"):
            guidance.apg(rational, other, 2.0, norm_threshold=radius)
