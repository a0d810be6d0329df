"""Shares of samples that look real and of real data that samples cover, and the modes that samples hit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxdiff.metrics.statistics import as_features

_ROWS = 1024  # rows of a distance matrix in memory at a time


class PrecisionRecall(NamedTuple):
    """The shares of samples inside the real manifold, and of real data inside the samples' manifold, in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real, fake, *, k: int = 3) -> PrecisionRecall:
    """Compute the improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    A manifold is the union of balls around its examples, whose radius is the distance to the k-th nearest other
    example. Both shares depend on the numbers of examples: compare only values for the same numbers.

    Args:
        real: features [N, D].
        fake: features [M, D].
        k: number of the neighbour on the ball's surface, from 1 to min(N, M) - 1.

    Returns:
        PrecisionRecall(precision, recall).

    Raises:
        ValueError: widths differ, k is out of range, or features are not finite.
    """
    real, fake = as_features(real, "real"), as_features(fake, "fake")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of width {real.shape[1]} and {fake.shape[1]} cannot be compared")
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k must be in 1 .. {min(len(real), len(fake)) - 1}, got {k}")
    centre = real.mean(0)  # |x|^2 + |y|^2 - 2 x.y loses fewest digits around the origin
    real, fake = real - centre, fake - centre
    return PrecisionRecall(_share_inside(fake, real, k), _share_inside(real, fake, k))


class ModeCoverage(NamedTuple):
    """How samples are distributed over the modes of data in which all modes are equally likely.

    Attributes:
        covered: number of modes with enough samples.
        kl: KL(samples || uniform) of the histogram over modes, in nats, from 0 to log(modes).
    """

    covered: int
    kl: float


def mode_coverage(labels, modes: int, *, at_least: int = 1) -> ModeCoverage:
    """Count the modes that samples hit, and compare their histogram with the uniform one (Metz et al. 2017).

    arXiv:1611.02163. The divergence of N perfect samples is about (modes - 1) / (2 N), not 0: compare it with that of
    as many real examples.

    Args:
        labels: int [N], the mode of each sample, in 0 .. modes - 1.
        modes: number of modes.
        at_least: number of samples that a mode needs to count as covered, >= 1.

    Returns:
        ModeCoverage(covered, kl).

    Raises:
        ValueError: there are no samples, labels are not integers in range, or modes or at_least is less than 1.
    """
    labels = np.asarray(labels)
    if modes < 1 or at_least < 1:
        raise ValueError(f"modes and at_least must be at least 1, got modes = {modes}, at_least = {at_least}")
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [N], N >= 1, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= modes:
        raise ValueError(f"labels must be in 0 .. {modes - 1}, got {labels.min()} .. {labels.max()}")
    counts = np.bincount(labels, minlength=modes)
    share = counts[counts > 0] / len(labels)
    return ModeCoverage(int(np.sum(counts >= at_least)), float(np.sum(share * np.log(share * modes))))


def _share_inside(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """Return the share of points that lie in at least one ball of the manifold."""
    radii = _squared_radii(manifold, k)
    inside = [
        (_squared_distances(points[i : i + _ROWS], manifold) <= radii[None]).any(1)
        for i in range(0, len(points), _ROWS)
    ]
    return float(np.concatenate(inside).mean())


def _squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    """Return each point's squared distance to its k-th nearest other point."""
    radii = []
    for start in range(0, len(points), _ROWS):
        distances = _squared_distances(points[start : start + _ROWS], points)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        radii.append(np.partition(distances, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x * x, 1)[:, None] + np.sum(y * y, 1)[None]
    return np.maximum(squares - 2 * x @ y.T, 0.0)
