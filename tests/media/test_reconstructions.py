"""Pairs in a picture, and what is measured of them."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff import conditions, media
from jaxdiff.media import Samples

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (16, 12, 12, 1)).astype(np.float32)


def test_each_pair_is_its_original_and_its_reconstruction(tmp_path):
    medium = media.reconstructions((12, 12, 1))
    samples = Samples(0.5 * X[:7], {"x": X[:7]})
    medium.save(tmp_path / "a.png", samples)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (2 * 14 - 2, 5 * 26 - 2)
    np.testing.assert_array_equal(pixels[:12, 26:38], np.rint((X[1, ..., 0] + 1) * 127.5))
    np.testing.assert_array_equal(pixels[14:, 12:24], np.rint((0.5 * X[5, ..., 0] + 1) * 127.5))
    medium.save(tmp_path / "a.npz", samples)
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["original"], X[:7]) and np.array_equal(arrays["x"], 0.5 * X[:7])
    medium.save(tmp_path / "a", samples)
    assert len(list((tmp_path / "a").iterdir())) == 7
    with pytest.raises(ValueError, match=r"\(height, width, 1 or 3\)"):
        media.reconstructions((12, 12, 4))


def test_what_is_measured(tmp_path):
    """Of features that are a few pixels: exact pairs are at no distance, and as far from the others as originals."""
    features = lambda: lambda images: images.reshape(len(images), -1)[:, :5]  # noqa: E731
    medium = media.reconstructions((12, 12, 1), features=features)
    measure = medium.evaluator(tmp_path, conditions.none())
    close = measure(Samples(np.clip(X + 0.02, -1, 1), {"x": X}))
    assert 38 < close.values["psnr"] < 42 and 0.8 < close.values["ssim"] < 1 and close.values["count"] == 16
    assert close.values["feature_distance"] < 0.01 < close.values["feature_distance_other"]
    exact = measure(Samples(X, {"x": X})).values
    assert exact["psnr"] is None and abs(exact["feature_distance"]) < 1e-6
    assert exact["kernel_distance"] == exact["kernel_distance_real"]
    far = measure(Samples(-X, {"x": X})).values
    np.testing.assert_allclose(far["feature_distance"], 2, rtol=1e-5)
    beyond = measure(Samples(np.where(X > 0, 3.0, X), {"x": np.where(X > 0, 1.0, X)})).values
    assert beyond["psnr"] is None  # clipped, as pictures are
    without = media.reconstructions((12, 12, 1), missing="no network").evaluator(tmp_path, conditions.none())
    report = without(Samples(X, {"x": X}))
    assert sorted(report.values) == ["count", "psnr", "ssim"] and report.text.endswith("no network")
    few = measure(Samples(np.tile(X[:4], (3, 1, 1, 1)), {"x": np.tile(X[:4], (3, 1, 1, 1))}))
    assert "kernel_distance" not in few.values and few.values["count"] == 12 and "needs 8 different" in few.text
    thrice = np.tile(X, (3, 1, 1, 1))
    again = measure(Samples(thrice, {"x": thrice})).values
    kernel = [name for name in exact if name.startswith("kernel")]
    np.testing.assert_allclose([again[name] for name in kernel], [exact[name] for name in kernel], rtol=1e-5)
