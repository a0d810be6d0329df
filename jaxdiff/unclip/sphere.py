"""Paths between embeddings on their sphere."""

from __future__ import annotations

import numpy as np

__all__ = ["slerp", "text_difference"]


def slerp(a, b, share) -> np.ndarray:
    """Interpolate between vectors along a great circle (Shoemake 1985), at the length of the first.

    Args:
        a: [D], not zero.
        b: [D], not zero; its length is ignored.
        share: numbers [N], 0 is a and 1 is the direction of b.

    Returns:
        float32 [N, D].

    Raises:
        ValueError: vectors of other shapes or of no length, or opposite ones, between which no path is the shortest.
    """
    a, b, share = (np.asarray(each, np.float64) for each in (a, b, share))
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if a.ndim != 1 or a.shape != b.shape or share.ndim != 1 or not min(lengths) > 0:
        raise ValueError(f"slerp takes two vectors [D] of some length and shares [N], got {a.shape}, {b.shape}")
    u, v = a / lengths[0], b / lengths[1]
    # Of the difference and the sum: the arc cosine loses half of the digits of small angles.
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    if np.pi - angle < 1e-6:
        raise ValueError("there is no shortest path between opposite vectors")
    if angle < 1e-9:
        weights = np.stack([1 - share, share])
    else:
        weights = np.sin(np.stack([(1 - share) * angle, share * angle])) / np.sin(angle)
    return (lengths[0] * (weights[0][:, None] * u + weights[1][:, None] * v)).astype(np.float32)


def text_difference(image, before, after, share) -> np.ndarray:
    """Turn a picture's embedding towards the difference of two texts' (Ramesh et al. 2022, sec. 3.3).

    Args:
        image: the picture's [D].
        before: the embedding [D] of a text that describes the picture.
        after: that of a text which describes what it shall become.
        share: numbers [N] of how far it turns to the difference; up to 0.25 to 0.5 in the paper.

    Returns:
        float32 [N, D], as long as the picture's.

    Raises:
        ValueError: as by `slerp`; the texts have the same embedding.
    """
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if not np.linalg.norm(difference) > 0:
        raise ValueError("the two texts have the same embedding: there is no difference to follow")
    return slerp(image, difference, share)
