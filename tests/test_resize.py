"""Pictures at other sizes as Pillow makes them, and by the kernel's formula; blurred by the sum of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.resize import bicubic, blur

X = np.random.default_rng(0).uniform(-1, 1, (2, 6, 5, 3)).astype(np.float32)


def keys(d):
    """Keys's cubic convolution kernel, a = -1/2."""
    d = np.abs(d)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def matrix(old, new):
    """Weights of the pixels of a line for those of another, without widening the kernel."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    weights = keys(places[:, None] - np.arange(old)[None])
    return weights / weights.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def resized():
    """All that these tests need, in a program."""
    sizes = [(12, 10), (3, 2), (9, 3), (6, 5)]
    both = [(size, antialias) for size in sizes for antialias in (True, False)]
    made = jax.jit(lambda x: [bicubic(x, size, antialias=antialias) for size, antialias in both])(X)
    return dict(zip(both, made, strict=True))


@pytest.mark.slow
def test_bicubic_is_pillows(resized):
    for (size, antialias), got in resized.items():
        if not antialias:
            continue
        assert got.shape == (2, *size, 3)
        for i, channel in np.ndindex(2, 3):
            picture = Image.fromarray(X[i, :, :, channel], mode="F")
            want = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
            np.testing.assert_allclose(got[i, :, :, channel], want, atol=2e-6)


def test_without_antialiasing_four_pixels_count_along_an_axis(resized):
    for (size, antialias), got in resized.items():
        if antialias:
            continue
        want = np.einsum("ih,bhwc,jw->bijc", matrix(6, size[0]), X, matrix(5, size[1]))
        np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(resized[(3, 2), True] - resized[(3, 2), False]).max() > 0.1
    np.testing.assert_array_equal(resized[(6, 5), True], X)


def test_blur_is_a_sum_of_neighbours_by_example():
    sigma = np.array([0.6, 0.0], np.float32)
    got = jax.jit(blur)(X, sigma)
    weights = np.exp(-0.5 * np.array([1, 0, 1]) / 0.36)
    weights /= weights.sum()
    padded = np.pad(X[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    want = sum(weights[i] * weights[j] * padded[i : i + 6, j : j + 5] for i, j in np.ndindex(3, 3))
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[1], X[1])


def test_what_is_no_batch_of_pictures_is_refused():
    for wrong in (jnp.zeros((4, 4, 3)), jnp.zeros((1, 4, 4, 3), jnp.uint8)):
        with pytest.raises(ValueError, match=r"floating-point \[B, H, W, C\], got "):
            bicubic(wrong, (2, 2))
    with pytest.raises(ValueError, match=r"size must be .* of at least 1, got \(0, 2\)"):
        bicubic(jnp.zeros((1, 4, 4, 3)), (0, 2))
    with pytest.raises(ValueError, match=r"one number for each of 2 pictures, got the shape \(\)"):
        blur(X, np.float32(1))
