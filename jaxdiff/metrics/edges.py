"""How well pictures have the edges that they were asked for."""

from __future__ import annotations

import numpy as np

__all__ = ["edge_f1"]


def edge_f1(edges: np.ndarray, asked: np.ndarray, *, threshold: float) -> np.ndarray:
    """The F1 score of each picture's edges, pixel by pixel and without tolerance.

    Args:
        edges: [N, H, W], the strength of a picture's edges.
        asked: [N, H, W], what it should be.
        threshold: what is stronger is an edge.

    Returns:
        float64 [N]: twice the number of edges in both over the number in each; 1 where neither has an edge.

    Raises:
        ValueError: arrays of other shapes.
    """
    if edges.ndim != 3 or edges.shape != asked.shape:
        raise ValueError(f"edges are two arrays [N, H, W] of one shape, got {edges.shape} and {asked.shape}")
    found, wanted = edges > threshold, asked > threshold
    both, total = (found & wanted).sum((1, 2)), found.sum((1, 2)) + wanted.sum((1, 2))
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1))
