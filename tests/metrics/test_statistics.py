import numpy as np
import pytest

from jaxdiff.metrics import Statistics


def sample(n, d=5, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, (n, d)) @ np.random.default_rng(9).normal(size=(d, d))


def assert_same(a, b):
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-12, atol=1e-10)


def test_moments_are_numpys():
    x = sample(40)
    stats = Statistics.of(x)
    np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(stats.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_merging_is_concatenation_in_any_order():
    a, b, c = sample(1, seed=1), sample(17, seed=2), sample(200, seed=3)
    whole = Statistics.of(np.concatenate([a, b, c]))
    assert_same(Statistics.of(a).merge(Statistics.of(b)).merge(Statistics.of(c)), whole)
    assert_same(Statistics.of(c).merge(Statistics.of(a).merge(Statistics.of(b))), whole)
    assert_same(Statistics.of(a).update(b).update(c), whole)


def test_a_large_mean_does_not_cancel_the_covariance():
    x = sample(500)
    far = Statistics.of(x[:123] + 1e6).update(x[123:] + 1e6)
    np.testing.assert_allclose(far.covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_float32_features_are_accumulated_in_float64():
    x = (sample(300) + 1e3).astype(np.float32)
    stats = Statistics.of(x)
    assert stats.mean.dtype == stats.scatter.dtype == np.float64
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean(0), rtol=1e-14)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2))])
def test_anything_but_a_matrix_is_refused(bad):
    with pytest.raises(ValueError, match="non-empty matrix"):
        Statistics.of(bad)


def test_nan_and_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        Statistics.of([[1.0, np.nan]])
    with pytest.raises(ValueError, match="width 5 and 4"):
        Statistics.of(sample(3)).merge(Statistics.of(sample(3, d=4)))
    with pytest.raises(ValueError, match="at least 2"):
        _ = Statistics.of(sample(1)).covariance
