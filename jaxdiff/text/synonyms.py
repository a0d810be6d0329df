"""Words in place of unknown ones: the nearest in meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["nearest_words"]


def nearest_words(
    words: Sequence[str], known: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray], *, least: float = 0.5
) -> dict[str, str]:
    """Find the known words with the largest cosine similarity.

    Args:
        words: unknown ones.
        known: the words to choose from.
        embed: N texts -> unit vectors [N, D].
        least: the similarity below which a word has no synonym.

    Returns:
        word -> known word, of those that have one.
    """
    if not words:
        return {}
    vectors = embed([*words, *known])
    likeness = vectors[: len(words)] @ vectors[len(words) :].T
    best = likeness.argmax(axis=1)
    return {word: known[i] for word, i, value in zip(words, best, likeness.max(axis=1), strict=True) if value >= least}
