"""Pictures and their captions to measure and to show with, of training and held out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.captions import captions_of
from jaxdiff.data.compositions import Compositions, caption, draw, select
from jaxdiff.data.render import render
from jaxdiff.data.transforms import to_float

__all__ = ["Pairs", "pairs_of"]

SEED = 2**20  # of compositions; training has those of its own seed


class Pairs(NamedTuple):
    """Pictures and their captions.

    Attributes:
        captions: N captions, first those of training.
        held_out: of how many captions at the end training shows none.
        read: numbers int [B], each below N -> pictures, float32 [B, H, W, C] in [-1, 1].
    """

    captions: tuple[str, ...]
    held_out: int
    read: Callable[[np.ndarray], np.ndarray]


def pairs_of(source: Any, count: int) -> Pairs:
    """Choose pairs of a source.

    Args:
        source: from `open_dataset(..., captions=True)`.
        count: number of pairs: of `Compositions` half of them are held-out combinations, all without articles, which
            change no picture; of another source they are spread evenly, as many as there are at most, and each has the
            first of its captions.

    Raises:
        ValueError: the captions are not known beforehand.
    """
    if isinstance(source, Compositions):
        counts = count - count // 2, count // 2
        parts = [draw(SEED, count=n, held_out=bool(i), subset=source.subset) for i, n in enumerate(counts)]
        drawn = [select(part, i)._replace(article=0) for part in parts for i in range(len(part.kind))]
        read: Callable[[int], np.ndarray] = lambda i: render(drawn[i])  # noqa: E731
        captions, held_out = tuple(map(caption, drawn)), counts[1]
    else:
        captions_of(source)
        places = [i * len(source) // min(count, len(source)) for i in range(min(count, len(source)))]
        read = lambda i: source[places[i]]["x"]  # noqa: E731
        captions, held_out = tuple(source.captions[i][0] for i in places), 0
    return Pairs(captions, held_out, lambda numbers: to_float(np.stack([read(int(i)) for i in numbers])))
