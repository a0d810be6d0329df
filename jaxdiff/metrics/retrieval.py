"""Whether what belongs together is found among others: recall at 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxdiff.metrics.statistics import as_features

__all__ = ["recall_at_1"]


def recall_at_1(queries, candidates, names: Sequence[str] | None = None, *, of: int = 100) -> float:
    """The share of queries whose nearest candidate, of so many, is the one that they belong to (R@1).

    Query i belongs to candidate i; the pairs are taken in blocks, and those of a last, smaller block are left out.
    Nearest is the largest inner product. Of several that are equally near each counts as a part, so that vectors that
    are all the same find 1 / `of`.

    Args:
        queries: [N, D], e.g. unit vectors of pictures.
        candidates: [N, D], e.g. unit vectors of their captions.
        names: of the pairs: a candidate of the same name is right, too. None: all differ.
        of: candidates in a block; chance is 1 / `of`.

    Returns:
        a number in [0, 1].

    Raises:
        ValueError: arrays that are not [N, D] and of one shape, other than N names, or fewer pairs than a block.
    """
    a, b = as_features(queries, "queries"), as_features(candidates, "candidates")
    labels = np.arange(len(a)) if names is None else np.unique(list(names), return_inverse=True)[1]
    if a.shape != b.shape or len(labels) != len(a):
        raise ValueError(f"pairs need as many queries, candidates and names, got {a.shape}, {b.shape}, {len(labels)}")
    if of < 1 or len(a) < of:
        raise ValueError(f"R@1 of {of} needs at least as many pairs, got {len(a)}")
    right = []
    for start in range(0, len(a) - of + 1, of):
        block = slice(start, start + of)
        similarity = a[block] @ b[block].T
        nearest = similarity >= similarity.max(1, keepdims=True)
        same = labels[block, None] == labels[None, block]
        right.append((nearest & same).sum(1) / nearest.sum(1))
    return float(np.mean(right))
