"""Ellipses against their area and their Fourier transform; the phantoms that are made of them."""

import numpy as np
import pytest
from scipy.special import j1

from jaxdiff.domains.medical import Ellipses, Phantoms, coverage, draw_phantom, shepp_logan

ELLIPSES = Ellipses(
    np.array([[0.2, -0.3], [-0.1, 0.25], [0.0, 0.0]]),
    np.array([[0.5, 0.2], [0.15, 0.3], [0.1, 0.6]]),
    np.array([0.7, -0.4, 1.2]),
)


def test_coverage_has_the_area_of_an_ellipse():
    size = 96
    area = np.sum(coverage(ELLIPSES, size), axis=(1, 2)) * (2 / size) ** 2
    np.testing.assert_allclose(area, np.pi * np.prod(ELLIPSES.axes, axis=1), rtol=3e-3)


def test_coverage_has_the_fourier_transform_of_an_ellipse():
    """A disc's, a J1(2 pi a k) / k, stretched, turned and shifted; and low frequencies, of which pixels are points."""
    size = 128
    drawn = coverage(ELLIPSES, size)
    at = (np.arange(size) + 0.5) * 2 / size - 1
    for kx, ky in ((0.5, 0.0), (0.0, 1.0), (1.0, 0.7), (-0.8, 1.1)):
        wave = np.exp(-2j * np.pi * (kx * at[None] - ky * at[:, None]))  # y upwards
        found = np.sum(drawn * wave, axis=(1, 2)) * (2 / size) ** 2
        cos, sin = np.cos(ELLIPSES.angle), np.sin(ELLIPSES.angle)
        a, b = ELLIPSES.axes.T
        k = np.hypot(a * (cos * kx + sin * ky), b * (cos * ky - sin * kx))
        exact = a * b * j1(2 * np.pi * k) / k * np.exp(-2j * np.pi * ELLIPSES.centre @ [kx, ky])
        np.testing.assert_allclose(found, exact, atol=4e-3 * np.prod(ELLIPSES.axes, axis=1).max())


def test_a_pixel_deep_inside_is_covered():
    wide = coverage(Ellipses(np.zeros((1, 2)), np.array([[0.9, 0.8]]), np.zeros(1)), 33)[0]
    assert wide[16, 16] == wide[16, 3] == wide[4, 16] == 1 and wide[0, 0] == wide[16, 0] == wide[2, 16] == 0
    # The edge is 14.85 and 13.2 pixels from the middle, of which a pixel's begins 14.5 and 12.5 from it.
    np.testing.assert_allclose(
        [wide[16, 31], wide[16, 1], wide[29, 16], wide[3, 16]], [0.35, 0.35, 0.7, 0.7], atol=1e-6
    )


def test_shepp_logan():
    size = 256
    drawn = shepp_logan(size)

    def value(x, y):
        return drawn[round((1 - y) * size / 2 - 0.5), round((1 + x) * size / 2 - 0.5)]

    # Rim, tissue, the two ventricles, of which the left in the picture is the larger, and the lesions.
    points = [(0.0, 0.9), (0.0, 0.0), (0.22, 0.0), (-0.22, 0.0), (0.0, 0.4), (0.0, -0.1), (0.06, -0.605), (0.9, 0.9)]
    np.testing.assert_allclose([value(*p) for p in points], [1, 0.2, 0, 0, 0.3, 0.3, 0.3, 0], atol=1e-12)
    left, right = drawn[100:156, 60:128], drawn[100:156, 128:196]
    assert np.sum(left < 0.1) > 1.2 * np.sum(right < 0.1)
    # No sum is below 0, so that the integrals add up.
    lesions = 0.1 * (0.21 * 0.25 + 2 * 0.046**2 + 2 * 0.046 * 0.023 + 0.023**2)
    product = 0.69 * 0.92 - 0.8 * 0.6624 * 0.874 - 0.2 * (0.11 * 0.31 + 0.16 * 0.41) + lesions
    assert abs(4 * drawn.mean() - np.pi * product) < 3e-4


def test_phantoms_are_functions_of_seed_and_index():
    phantoms = Phantoms(24, seed=3, count=50)
    x = np.stack([phantoms[i]["x"] for i in range(50)])
    assert len(phantoms) == 50 and x.shape == (50, 24, 24, 1) and x.dtype == np.uint8
    np.testing.assert_array_equal(x[7], Phantoms(24, seed=3)[7]["x"])
    np.testing.assert_array_equal(x[7, ..., 0], np.round(255 * draw_phantom(np.random.default_rng((3, 7)), 24)))
    assert not np.array_equal(x[7], Phantoms(24, seed=4)[7]["x"])
    assert len(np.unique(x.reshape(50, -1), axis=0)) == 50
    at = (np.arange(24) + 0.5) / 12 - 1
    outside = np.hypot(at[:, None], at) > 1 + 1 / 12
    assert not x[:, outside].any() and x.max() > 200
    assert np.all(np.mean(x > 0, axis=(1, 2, 3)) > 0.1)
    # The same phantom at another size, but for its pixels.
    fine = Phantoms(48, seed=3)[7]["x"].reshape(24, 2, 24, 2).mean(axis=(1, 3))
    assert np.abs(fine - x[7, ..., 0]).mean() < 4
    with pytest.raises(IndexError, match=r"0\.\.49"):
        phantoms[50]
    for wrong in ({"size": 0}, {"size": 8, "seed": -1}, {"size": 8, "count": 0}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            Phantoms(**wrong)
