"""Pictures of compositions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdiff.data.objects import BACKGROUNDS, layer, objects
from jaxdiff.data.twemoji import load_twemoji

if TYPE_CHECKING:
    from jaxdiff.data.compositions import Composition

__all__ = ["CANVAS", "corners", "ground_of", "render", "side_of"]

CANVAS = 32
SMALL, MEDIUM, LARGE = 12, 16, 22  # sides in pixels; an object without a place is as large as the canvas unless small
WHITE = np.array([255.0, 255.0, 255.0])
NUMBERED = {2: ((8, 0), (8, 16)), 3: ((0, 0), (0, 16), (16, 8))}  # top and left edge of each


def side_of(c: Composition) -> int:
    """The side of each object of a single composition in pixels."""
    if c.other >= 0 or c.number > 0:
        return MEDIUM
    if c.size == 0:
        return SMALL
    return CANVAS if c.place < 0 else LARGE if c.size == 1 else MEDIUM


def corners(c: Composition) -> list[tuple[int, int]]:
    """Top and left edge of each object of a single composition."""
    if c.other >= 0:
        return list(NUMBERED[2])
    if c.number > 0:
        return list(NUMBERED[int(c.number)])
    far = CANVAS - side_of(c)
    middle = far // 2
    edges = {-1: (middle, middle), 0: (middle, 0), 1: (middle, far), 2: (0, middle), 3: (far, middle)}
    return [edges[int(c.place)]]


def ground_of(background: int) -> np.ndarray:
    """The colour behind the objects: float [3] in [0, 255].

    Args:
        background: index of `COLOURS`; -1 is white.
    """
    return WHITE if background < 0 else BACKGROUNDS[background]


def render(c: Composition) -> np.ndarray:
    """The picture of a single composition.

    Args:
        c: the composition.

    Returns:
        uint8 [32, 32, 3].

    Raises:
        ValueError: it has a colour, and its object is not of one colour.
    """
    table = objects()
    if c.tone >= 0:
        return load_twemoji(tones=True).x[table.toned[c.object - table.things, c.tone]]
    canvas = np.broadcast_to(ground_of(c.background), (CANVAS, CANVAS, 3)).copy()
    side = side_of(c)
    for i, (top, left) in enumerate(corners(c)):
        thing = c.other if i == 1 and c.other >= 0 else c.object
        drawn = layer(int(table.picture[thing]), side, int(c.colour))
        here = canvas[top : top + side, left : left + side]
        here *= 1 - drawn[..., 3:] / 255
        here += drawn[..., :3]
    if c.kind == 3:
        canvas = canvas[:, ::-1]
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)
