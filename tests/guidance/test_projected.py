"""Adaptive projected guidance: CFG where nothing is projected, and orthogonal to the answer where all is."""

import jax.numpy as jnp
import numpy as np
import pytest
from exact import rational

from jaxdiff import Level, guidance

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
    pull = (np.asarray(guidance.apg(rational, other, 3.0, eta=1.0, radius=radius)(X, AT)) - COND) / 2
    expected = (COND - UNCOND) * np.minimum(1, radius / lengths)[:, None, None]
    np.testing.assert_allclose(pull, expected, rtol=1e-4, atol=1e-5)


def test_a_radius_that_is_not_positive_is_refused():
    for radius in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="radius must be above 0"):
            guidance.apg(rational, other, 2.0, radius=radius)
