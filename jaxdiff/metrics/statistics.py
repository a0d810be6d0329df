"""First and second moments of a stream of features, in float64, mergeable in any order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


def as_features(features, name: str = "features") -> np.ndarray:
    """Check a feature matrix and return it in float64.

    Args:
        features: numeric array [N, D], N >= 1 and D >= 1.
        name: name of the matrix, for errors.

    Returns:
        float64 array [N, D].

    Raises:
        ValueError: the array is not a matrix, is empty, or has values that are not finite.
    """
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a non-empty matrix [examples, features], got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


class Statistics(NamedTuple):
    """Number, mean and scatter of the features of a stream.

    The scatter is centred, sum_i (x_i - mean)(x_i - mean)^T: sums of raw squares would cancel in the covariance.

    Attributes:
        n: number of examples.
        mean: float64 [D].
        scatter: float64 [D, D].
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features) -> Statistics:
        """Return the statistics of one batch.

        Args:
            features: numeric array [N, D].

        Returns:
            its Statistics.

        Raises:
            ValueError: the array is not a matrix, is empty, or is not finite.
        """
        array = as_features(features)
        mean = array.mean(0)
        centred = array - mean
        return cls(len(array), mean, centred.T @ centred)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of the union of both samples (Chan, Golub and LeVeque 1983).

        Args:
            other: Statistics of features of the same width.

        Returns:
            `Statistics.of` the concatenated features.

        Raises:
            ValueError: the widths differ.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge features of width {self.mean.size} and {other.mean.size}")
        n = self.n + other.n
        shift = other.mean - self.mean
        between = (self.n * other.n / n) * np.outer(shift, shift)
        mean = self.mean + (other.n / n) * shift
        return Statistics(n, mean, self.scatter + other.scatter + between)

    def update(self, features) -> Statistics:
        """Return the statistics after one more batch of features [N, D]."""
        return self.merge(Statistics.of(features))

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance (divisor n - 1), float64 [D, D]; ValueError for fewer than two examples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 examples, got {self.n}")
        return self.scatter / (self.n - 1)
