"""Static and dynamic thresholding."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Level, guidance

AT = Level(*map(jnp.float32, (0.3, 0.8, 0.6)))
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32) * jnp.array([0.2, 1, 4]).reshape(3, 1, 1)


def same(x, level):
    return x


def test_clip_keeps_the_datas_range():
    np.testing.assert_array_equal(guidance.clip(same)(X, AT), np.clip(X, -1, 1))
    np.testing.assert_array_equal(guidance.clip(same, 0.0, 0.5)(X, AT), np.clip(X, 0, 0.5))


def test_dynamic_thresholding_divides_each_example_by_its_own_quantile():
    out = np.asarray(guidance.dynamic_threshold(same, 0.9)(X, AT))
    for x, y in zip(np.asarray(X, np.float64), out, strict=True):
        ordered = np.sort(np.abs(x).ravel())
        place = 0.9 * (x.size - 1)  # linear between the two nearest
        s = ordered[int(place)] + (place - int(place)) * (ordered[int(place) + 1] - ordered[int(place)])
        s = max(s, 1)
        np.testing.assert_allclose(y, np.clip(x, -s, s) / s, rtol=1e-5)
    np.testing.assert_array_equal(out[0], X[0])  # within [-1, 1]: as it was
    largest = np.abs(X).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(guidance.dynamic_threshold(same, 1.0)(X, AT), X / np.maximum(largest, 1), rtol=1e-6)
    # Divided by at most 1: clipped.
    np.testing.assert_array_equal(guidance.dynamic_threshold(same, 0.9, max_scale=1.0)(X, AT), np.clip(X, -1, 1))


def test_empty_ranges_and_wrong_quantiles_are_refused():
    for low, high in ((1.0, 1.0), (1.0, -1.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="low < high"):
            guidance.clip(same, low, high)
    for percentile in (0.0, 1.5, 99.5, -1, np.nan):
        with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\]"):
            guidance.dynamic_threshold(same, percentile)
    with pytest.raises(ValueError, match="max_scale must be at least 1"):
        guidance.dynamic_threshold(same, max_scale=0.5)
