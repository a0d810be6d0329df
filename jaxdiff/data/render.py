"""Pictures of compositions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdiff.data.objects import BACKGROUNDS, layer, objects
from jaxdiff.data.twemoji import load_twemoji

if TYPE_CHECKING:
    from jaxdiff.data.compositions import Composition

__all__ = ["background_of", "corners", "ground_of", "paste", "render", "side_of"]

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


def background_of(c: Composition) -> np.ndarray:
    """The picture of a single composition without its objects, float [32, 32, 3]."""
    return np.broadcast_to(ground_of(c.background), (CANVAS, CANVAS, 3)).copy()


def paste(canvas: np.ndarray, drawn: np.ndarray, top: int, left: int) -> None:
    """Draw an object onto a canvas, in place.

    Args:
        canvas: float [32, 32, 3].
        drawn: from `layer`.
        top: of the object.
        left: of the object.
    """
    here = canvas[top : top + len(drawn), left : left + len(drawn)]
    here *= 1 - drawn[..., 3:] / 255
    here += drawn[..., :3]


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
    canvas = background_of(c)
    side = side_of(c)
    for i, (top, left) in enumerate(corners(c)):
        thing = c.other if i == 1 and c.other >= 0 else c.object
        paste(canvas, layer(int(table.picture[thing]), side, int(c.colour)), top, left)
    if c.kind == 3:
        canvas = canvas[:, ::-1]
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)
