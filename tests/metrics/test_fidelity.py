"""PSNR and SSIM: closed forms, limits, and the published formula written another way."""

import numpy as np
import pytest

from jaxdiff.metrics import psnr, ssim

RNG = np.random.default_rng(0)
A = RNG.uniform(-1, 1, (3, 14, 12, 2))


def test_psnr_of_a_constant_error():
    np.testing.assert_allclose(psnr(A, A + 0.02), 10 * np.log10(4 / 0.02**2), rtol=1e-9)  # 40 dB
    np.testing.assert_allclose(
        psnr(A, A + np.array([0.1, 0.2, 0.4])[:, None, None, None])[:2], [26.0206, 20], atol=1e-4
    )
    np.testing.assert_allclose(psnr(127.5 * A, 127.5 * A + 2.55, span=255), 40, rtol=1e-6)
    assert psnr(A, A)[0] == np.inf


def test_ssim_in_closed_form():
    np.testing.assert_allclose(ssim(A, A), 1, rtol=1e-12)
    flat = np.zeros((1, 11, 11, 1))
    for a, b in ((0.5, 0.3), (0.8, -0.2)):  # without contrast the luminance alone is left
        c1 = (0.01 * 2) ** 2
        np.testing.assert_allclose(ssim(flat + a, flat + b), (2 * a * b + c1) / (a * a + b * b + c1), rtol=1e-9)


def test_ssim_is_wangs_formula_at_each_place():
    b = A + 0.3 * RNG.normal(size=A.shape)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    for n in range(3):
        found = []
        for i in range(4):
            for j in range(2):
                for c in range(2):
                    x, y = (image[n, i : i + 11, j : j + 11, c] for image in (A, b))
                    mx, my = np.sum(window * x), np.sum(window * y)
                    vx, vy = np.sum(window * (x - mx) ** 2), np.sum(window * (y - my) ** 2)
                    cov = np.sum(window * (x - mx) * (y - my))
                    found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        np.testing.assert_allclose(ssim(A, b)[n], np.mean(found), rtol=1e-9)


def test_other_shapes_are_refused():
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"two arrays \[N, H, W, C\]"):
            measure(A, A[:2])
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(A[:, :10], A[:, :10])
