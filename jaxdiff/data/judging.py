"""Whether pictures show what their captions say: by the nearest of the pictures that the grammar makes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.data.compositions import KINDS, Composition, select
from jaxdiff.data.objects import COLOURS, COUNTS, PLACES, SIZES, layer, objects
from jaxdiff.data.render import background_of, corners, ground_of, paste, render, side_of
from jaxdiff.data.twemoji import TONES, load_twemoji

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ATTRIBUTES", "chance", "judge"]

ATTRIBUTES = ("object", "other", "order", "size", "colour", "place", "background", "number", "mirrored", "tone")
CHOICES = {
    "order": 2, "size": len(SIZES), "colour": len(COLOURS), "place": len(PLACES), "background": len(COLOURS),
    "number": len(COUNTS), "mirrored": 2, "tone": len(TONES),
}  # fmt: skip


def judge(x: np.ndarray, c: Composition) -> dict[str, np.ndarray]:
    """Judge each attribute that a caption names: is the true one that of the nearest picture?

    Nearest is the highest normalized correlation with the pictures of the same caption in which that attribute differs.
    Place and size are compared together, and the other attributes at the place and size that were found, so that a
    misplaced object can still be the right object. Objects are compared with all others: with those of one colour where
    a colour is named, with persons where a tone is.

    Args:
        x: uint8 or float [B, 32, 32, 3], in any range in which white is the highest value.
        c: what their captions say, B compositions.

    Returns:
        for each of `ATTRIBUTES`, float [B]: 1 where it is right, 0 where it is wrong, NaN where the caption doesn't
        name it. "order" is whether "A and B" is nearer than "B and A".
    """
    out = {name: np.full(len(x), np.nan) for name in ATTRIBUTES}
    for i in range(len(x)):
        single = Composition(*(int(field) for field in select(c, i)))
        for name, right in _judge_single(np.asarray(x[i], float), single):
            out[name][i] = right
    return out


def chance(c: Composition) -> dict[str, float]:
    """The share that a random choice gets right, of each attribute that the captions name.

    Args:
        c: B compositions.
    """
    out: dict[str, list[float]] = {}
    for i in range(len(c.kind)):
        single = Composition(*(int(field) for field in select(c, i)))
        for name in _named(single):
            out.setdefault(name, []).append(1 / CHOICES.get(name, len(_rivals(single))))
    return {name: float(np.mean(values)) for name, values in out.items()}


def _named(c: Composition) -> list[str]:
    """The attributes that a caption names."""
    values = {"size": c.size, "colour": c.colour, "place": c.place, "background": c.background, "tone": c.tone}
    kinds = {"pair": ["other", "order"], "number": ["number"], "mirrored": ["mirrored"]}
    return ["object", *kinds.get(KINDS[c.kind], []), *(name for name, value in values.items() if value >= 0)]


def _judge_single(x: np.ndarray, c: Composition) -> Iterable[tuple[str, bool]]:
    named = _named(c)
    where = _vary(c, **{name: range(CHOICES[name]) for name in ("size", "place") if name in named})
    found = where[_nearest(x, map(render, where))]
    for name in ("size", "place"):
        if name in named:
            yield name, getattr(found, name) == getattr(c, name)
    yield "object", _object(x, found, "object") == c.object
    if "other" in named:
        yield "other", _object(x, found, "other") == c.other
        swapped = c._replace(object=c.other, other=c.object)
        yield "order", _nearest(x, [render(c), render(swapped)]) == 0
    if "mirrored" in named:
        yield "mirrored", _nearest(x, [render(c), render(c)[:, ::-1]]) == 0
    for name, first in (("colour", 0), ("background", 0), ("tone", 0), ("number", min(COUNTS))):
        if name in named:
            values = range(first, first + CHOICES[name])
            yield name, values[_nearest(x, map(render, _vary(found, **{name: values})))] == getattr(c, name)


def _vary(c: Composition, **values: Any) -> list[Composition]:
    """The compositions with each combination of values."""
    out = [c]
    for name, several in values.items():
        out = [each._replace(**{name: value}) for each in out for value in several]
    return out


def _nearest(x: np.ndarray, pictures: Any) -> int:
    """Index of the picture with the highest normalized correlation."""
    templates = pictures if isinstance(pictures, np.ndarray) else np.stack(list(pictures))
    flat = templates.reshape(len(templates), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    centred = (x - x.mean()).ravel().astype(np.float32)
    return int(np.argmax(flat @ centred / np.sqrt(np.einsum("ij,ij->i", flat, flat) + 1e-6)))


def _rivals(c: Composition) -> np.ndarray:
    """Numbers of the objects that could be in a picture's place."""
    table = objects()
    if c.tone >= 0:
        return np.arange(table.things, len(table.names))
    return table.coloured if c.colour >= 0 else np.arange(table.things)


def _object(x: np.ndarray, c: Composition, slot: str) -> int:
    """The rival whose picture, in place of an object, has the highest normalized correlation.

    Args:
        x: float [32, 32, 3].
        c: a single composition.
        slot: the object that is replaced, "object" or "other".
    """
    if c.tone >= 0:
        table = objects()
        return int(_rivals(c)[_nearest(x, load_twemoji(tones=True).x[table.toned[:, c.tone]])])
    if KINDS[c.kind] == "mirrored":
        x = x[:, ::-1]
    # A picture is what stays, plus a difference in the windows of the object: correlations need these windows alone.
    side, difference = side_of(c), _differences(side_of(c), c.colour, c.background)
    stays, windows, centred = background_of(c), [], x - x.mean()
    for i, (top, left) in enumerate(corners(c)):
        window = (slice(top, top + side), slice(left, left + side))
        if c.other < 0 or (slot == "other") == (i == 1):
            windows.append(window)
        else:
            paste(stays, layer(int(objects().picture[c.other if i else c.object]), side, c.colour), top, left)
    ground, count = background_of(c)[:side, :side].ravel(), len(windows)
    dot = np.sum(centred * stays) + difference @ sum(centred[window] for window in windows).ravel()
    total = stays.sum() + count * difference.sum(1)
    square = np.sum(stays * stays) + count * (2 * difference @ ground + np.einsum("ij,ij->i", difference, difference))
    return int(_rivals(c)[np.argmax(dot / np.sqrt(square - total**2 / stays.size + 1e-6))])


@functools.lru_cache(maxsize=32)
def _differences(side: int, colour: int, background: int) -> np.ndarray:
    """What each rival adds to its background: float64 [N, side * side * 3]."""
    table = objects()
    rivals = table.coloured if colour >= 0 else np.arange(table.things)
    layers = np.stack([layer(int(table.picture[i]), side, colour) for i in rivals]).astype(float)
    return (layers[..., :3] - layers[..., 3:] / 255 * ground_of(background)).reshape(len(rivals), -1)
