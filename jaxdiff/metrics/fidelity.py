"""How close an image is to another one, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import numpy as np

__all__ = ["psnr", "ssim"]

WINDOW, STD = 11, 1.5  # pixels of SSIM's Gaussian window (Wang et al. 2004, sec. III-B)
K1, K2 = 0.01, 0.03


def psnr(a, b, *, span: float = 2.0) -> np.ndarray:
    """Compute the peak signal-to-noise ratio of each pair, 10 log10(span^2 / mean squared error).

    Args:
        a: images [N, H, W, C].
        b: images like a.
        span: difference of the largest and the smallest possible value; 2 for [-1, 1].

    Returns:
        float64 [N], in dB; infinite for equal images.

    Raises:
        ValueError: shapes differ or are not [N, H, W, C].
    """
    a, b = _pair(a, b)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / np.mean((a - b) ** 2, axis=(1, 2, 3)))


def ssim(a, b, *, span: float = 2.0) -> np.ndarray:
    """Compute the structural similarity of each pair (Wang et al. 2004, eq. 13), the mean over places and channels.

    Means and variances are those of a Gaussian window of 11 x 11 pixels, at all places where it lies inside the image.

    Args:
        a: images [N, H, W, C], H and W at least 11.
        b: images like a.
        span: as for `psnr`.

    Returns:
        float64 [N], 1 for equal images.

    Raises:
        ValueError: shapes differ, are not [N, H, W, C], or are smaller than the window.
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW}, got shape {a.shape}")
    return np.array([_ssim(x, y, (K1 * span) ** 2, (K2 * span) ** 2) for x, y in zip(a, b, strict=True)])


def _ssim(x: np.ndarray, y: np.ndarray, c1: float, c2: float) -> float:
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))


def _blur(x: np.ndarray) -> np.ndarray:
    """Average over the window, at places inside the image: [H, W, C] -> [H - 10, W - 10, C]."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / STD) ** 2)
    for axis in (0, 1):
        size = x.shape[axis] - WINDOW + 1
        parts = [w * x.take(range(k, k + size), axis) for k, w in enumerate(weights / weights.sum())]
        x = np.sum(parts, axis=0)
    return x


def _pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 4 or 0 in a.shape:
        raise ValueError(f"pairs of images are two arrays [N, H, W, C], N >= 1, got shapes {a.shape} and {b.shape}")
    return a, b
