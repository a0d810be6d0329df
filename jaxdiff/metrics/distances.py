"""Distances between two samples of features: Frechet, kernel, and sliced Wasserstein."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxdiff.metrics.statistics import Statistics, as_features


def frechet(a, b) -> float:
    """Compute the squared Frechet distance of Gaussians fitted to two samples (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2}). It is the FID only with the features of that paper's network.

    The estimate has a positive bias, which decays like 1/N and differs between feature networks. With fewer examples
    than features, the covariances are singular and the bias is as large as the distance: use `kernel_distance`
    instead, and also report the distance of two real samples of the same sizes.

    Args:
        a: features [N, D], or the `Statistics` of a stream.
        b: features [M, D], or the `Statistics` of a stream.

    Returns:
        the distance, in squared units of the features, >= 0.

    Raises:
        ValueError: widths differ, there are fewer than two examples, or features are not finite.
    """
    a, b = (s if isinstance(s, Statistics) else Statistics.of(s) for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {a.mean.size} and {b.mean.size} cannot be compared")
    cov_a, cov_b = a.covariance, b.covariance
    # tr (C_a C_b)^{1/2} is the sum of the singular values of C_a^{1/2} C_b^{1/2}. Roots before the product keep small
    # directions, which the eigenvalues of C_a C_b would lose to rounding.
    cross = np.linalg.svd(_sqrtm(cov_a) @ _sqrtm(cov_b), compute_uv=False).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(distance, 0.0))


def _sqrtm(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root; eigenvalues that are negative by rounding count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


class KernelDistance(NamedTuple):
    """An unbiased estimate of a squared maximum mean discrepancy and its standard error."""

    value: float
    standard_error: float


def kernel_distance(a, b, *, blocks: int = 10, seed: int = 0) -> KernelDistance:
    """Compute the unbiased squared MMD with a cubic kernel, the KID (Binkowski et al. 2018, sec. 4).

    k(x, y) = (x.y/D + 1)^3. Both samples are shuffled and cut into `blocks` parts; the value is the mean of the parts'
    estimates (Zaremba et al. 2013). The parts are disjoint, hence independent, so that the spread of their estimates
    gives a valid standard error; overlapping subsets would underestimate it. The value is unbiased for any N, and may
    be negative for two samples of one distribution.

    Args:
        a: features [N, D].
        b: features [M, D].
        blocks: number of parts, >= 2; each needs at least two examples of either sample.
        seed: seed of the shuffle.

    Returns:
        KernelDistance(value, standard_error).

    Raises:
        ValueError: widths differ, there are too few examples for the blocks, or features are not finite.
    """
    a, b = as_features(a, "a"), as_features(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of width {a.shape[1]} and {b.shape[1]} cannot be compared")
    if blocks < 2 or min(len(a), len(b)) < 2 * blocks:
        raise ValueError(
            f"blocks must be at least 2, of at least 2 examples each; got {blocks} blocks for {len(a)} and "
            f"{len(b)} examples"
        )
    rng = np.random.default_rng(seed)
    parts = zip(
        np.array_split(a[rng.permutation(len(a))], blocks),
        np.array_split(b[rng.permutation(len(b))], blocks),
        strict=True,
    )
    values = np.array([_mmd2(x, y) for x, y in parts])
    return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(blocks)))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased U-statistic of the squared MMD, without pairs of an example with itself."""

    def kernel(u, v):
        return (u @ v.T / u.shape[1] + 1.0) ** 3

    def within(u):
        n = len(u)
        diagonal = (np.sum(u * u, 1) / u.shape[1] + 1.0) ** 3
        return (kernel(u, u).sum() - diagonal.sum()) / (n * (n - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def sliced_wasserstein(a, b, *, directions: int = 128, seed: int = 0) -> float:
    """Compute the sliced Wasserstein distance of order 2 (Rabin et al. 2011).

    The root of the mean, over random directions, of the squared Wasserstein distance of the samples' projections, which
    pairs both in their sorted order. It has no kernel and no fitted moments, and suits points of few dimensions. Two
    samples of one distribution are not at distance 0: also report the distance of two real samples of this size.

    Args:
        a: features [N, D].
        b: features [N, D], as many as a.
        directions: number of directions.
        seed: seed of the directions.

    Returns:
        the distance, in units of the features; that of a shift by d is about |d| / sqrt(D).

    Raises:
        ValueError: shapes differ, there is no direction, or features are not finite.
    """
    a, b = as_features(a, "a"), as_features(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"the projections of as many features are paired; got a of {a.shape} and b of {b.shape}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    along = np.random.default_rng(seed).normal(size=(a.shape[1], directions))
    along /= np.linalg.norm(along, axis=0)
    apart = np.sort(a @ along, axis=0) - np.sort(b @ along, axis=0)
    return float(np.sqrt(np.mean(np.square(apart))))
