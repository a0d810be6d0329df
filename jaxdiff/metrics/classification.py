"""Accuracy of a classifier on conditional samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Accuracy(NamedTuple):
    """Shares of examples that a classifier assigns to their label.

    Attributes:
        overall: over all examples, in [0, 1].
        by_class: float64 [K]; NaN for a class without examples.
    """

    overall: float
    by_class: np.ndarray


def accuracy(logits, labels) -> Accuracy:
    """Compute the share of examples whose largest logit is at their label, overall and by class.

    Args:
        logits: [N, K].
        labels: int [N], in 0 .. K - 1.

    Returns:
        Accuracy(overall, by_class).

    Raises:
        ValueError: shapes do not fit, there are no examples, labels are not integers in range, or logits are NaN.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or 0 in logits.shape:
        raise ValueError(f"logits must be [N, K] and labels [N] with N, K >= 1, got {logits.shape} and {labels.shape}")
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be integers in 0 .. {classes - 1}, got {np.unique(labels)}")
    if np.isnan(logits).any():
        raise ValueError("logits has NaN")
    hit = logits.argmax(1) == labels
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=hit, minlength=classes)
    by_class = np.divide(hits, counts, out=np.full(classes, np.nan), where=counts > 0)
    return Accuracy(float(hit.mean()), by_class)
