"""bits: uniform dequantization, and densities as bits per dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff.likelihood import bits_per_dim, dequantize

KEYS = jax.random.split(jax.random.key(0), 8)


@pytest.mark.slow
def test_data_is_spread_evenly_over_its_bin():
    k = np.random.default_rng(0).integers(0, 256, (8, 50, 5)).astype(np.uint8)
    k[0, 0, 0], k[0, 0, 1] = 0, 255
    x = dequantize(KEYS, jnp.asarray(k))
    place = (np.asarray(x, np.float64) + 1) * 128 - k
    assert x.dtype == jnp.float32 and place.min() > -1e-4 and place.max() < 1 + 1e-4
    assert stats.kstest(place.ravel(), "uniform").pvalue > 1e-4
    values = jnp.asarray(k / 127.5 - 1, jnp.float32)  # the same data as floats
    np.testing.assert_allclose(dequantize(KEYS, values), x, atol=1e-6)
    order = np.array([3, 1, 7])
    np.testing.assert_array_equal(dequantize(KEYS[order], jnp.asarray(k)[order]), x[order])


@pytest.mark.slow
def test_bits_of_known_densities(x64):
    """The uniform density costs log2(bins); Jensen: the mean over a bin bounds the bits of its mass from above."""
    np.testing.assert_allclose(bits_per_dim(jnp.asarray([12 * np.log(1 / 2)]), 12), 8)
    nats = stats.norm(3.0, 0.2).logpdf([[2.9, 3.3]]).sum(1)  # continuous data: a density, which has no bins
    np.testing.assert_allclose(bits_per_dim(jnp.asarray(nats), 2, bins=None), -nats / np.log(4))
    density, bins = stats.norm(0.1, 0.2), 8
    k = np.arange(2, 7)
    x = dequantize(jax.random.key(1), jnp.broadcast_to(jnp.asarray(k), (20_000, 5)), bins=bins)
    bits = np.asarray(bits_per_dim(jnp.asarray(density.logpdf(x)), 1, bins=bins))
    u = np.linspace(0, 1, 2001)
    expected = [np.trapezoid(-density.logpdf((i + u) * 2 / bins - 1), u) / np.log(2) + 2 for i in k]
    np.testing.assert_allclose(bits.mean(0), expected, atol=4 * bits.std(0).max() / np.sqrt(20_000))
    assert np.all(expected > -np.log2(density.cdf((k + 1) * 2 / bins - 1) - density.cdf(k * 2 / bins - 1)))


def test_wrong_arguments():
    for wrong, match in (
        (lambda: dequantize(KEYS, jnp.full((8, 1), 256)), r"lies in 0..255, got 256"),
        (lambda: dequantize(KEYS, jnp.full((8, 1), 1.5)), r"lies in -1..1, got 1.5"),
        (lambda: dequantize(KEYS, jnp.zeros((7, 1))), "one key per example: got 8 keys"),
        (lambda: dequantize(0, jnp.zeros((8, 1))), r"jax\.random\.key"),
        (lambda: dequantize(KEYS, jnp.zeros((8, 1)), bins=1), "at least 2, got 1"),
        (lambda: bits_per_dim(jnp.zeros(2), 3, bins=1), "at least 2, got 1"),
        (lambda: bits_per_dim(jnp.zeros(2), 0), "at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
