"""Parity with scikit-image: projections of a scan, and how like two pictures are."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import metrics
from jaxdiff.inverse import operators

skimage_metrics = pytest.importorskip("skimage.metrics")
transform = pytest.importorskip("skimage.transform")
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)


def test_radon_of_even_and_odd_sides():
    angles = np.array([0.0, 20.0, 45.0, 90.0, 133.0, 179.0])
    for n in (17, 32):
        at = np.arange(n) - n // 2
        picture = RNG.uniform(size=(n, n)) * (np.hypot(*np.meshgrid(at, at)) < n // 2 - 1)
        sinogram = operators.radon(jnp.asarray(angles), n).apply(jnp.asarray(picture)[None, ..., None])
        np.testing.assert_allclose(sinogram[0, ..., 0], transform.radon(picture, angles, circle=True), atol=1e-12)


def test_ssim_and_psnr():
    truth = RNG.uniform(-1, 1, (3, 14, 13, 3))
    other = np.clip(truth + 0.3 * RNG.normal(size=truth.shape), -1, 1)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    pairs = list(zip(truth, other, strict=True))
    expected = [skimage_metrics.structural_similarity(a, b, data_range=2, **gaussian) for a, b in pairs]
    np.testing.assert_allclose(metrics.ssim(truth, other), expected, rtol=1e-12)
    expected = [skimage_metrics.peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs]
    np.testing.assert_allclose(metrics.psnr(truth, other), expected, rtol=1e-12)
