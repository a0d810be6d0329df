"""Which pictures compositions are made of, chosen by names and by what is measured of their pixels."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np

from jaxdiff.data.twemoji import load_twemoji

__all__ = [
    "BACKGROUNDS", "COLOURS", "COUNTS", "PLACES", "SIZES", "SUBSETS", "Objects", "is_among", "layer", "name_of",
    "objects", "plural",
]  # fmt: skip

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
HUES = (355, 28, 50, 115, 210, 270, 325)  # of `COLOURS`, in degrees
PLACES = ("left", "right", "top", "bottom")
SIZES = ("small", "large")
COUNTS = {2: "two", 3: "three"}
RESERVED = {*COLOURS, *PLACES, *SIZES, *COUNTS.values(), "and", "mirrored", "on", "the", "skin", "tone"}
# A pixel has a colour if it is at least so saturated and bright; the rest, black, white and grey, keeps its own.
SATURATION, BRIGHTNESS = 0.3, 0.3
# An object is of one colour if at least this share of its pixels has a colour, if the hues agree to this length of
# their mean as unit vectors, and if it is so vivid that other hues have names, too: a dark orange is called brown.
COLOURED, AGREEMENT, VIVID = 0.5, 0.97, (0.45, 0.8)
# An object has a left and a right if its correlation with its mirror image is lower.
SYMMETRY = 0.55
SUBSETS = ("all", "core", "few")
CORE = r"face-.*|cat-face|monkey-face|animal-.*|food-.*|heart|geometric"
THINGS = (
    r"plant-.*|drink|transport-(ground|air|water)|clothing|musical-instrument|tool|book-paper|household|game|sport|event"
    r"|sky.*"
)
# Objects that everyone knows, of `CORE`, and a few faces.
FEW = {
    "apple", "banana", "bear", "bee", "bird", "bread", "butterfly", "candy", "carrot", "cat", "cherries", "chicken",
    "circle", "cookie", "corn", "cow", "crab", "diamond", "dog", "dolphin", "doughnut", "duck", "egg", "elephant",
    "fish", "flamingo", "fries", "frog", "grapes", "hamburger", "heart", "horse", "hotdog", "icecream", "ladybug",
    "lemon", "mouse", "octopus", "owl", "penguin", "pig", "pineapple", "pizza", "rabbit", "shark", "sheep", "snail",
    "snake", "square", "strawberry", "taco", "tiger", "tomato", "triangle", "turtle", "waffle", "watermelon", "whale",
    "alien", "cat face", "clown face", "dog face", "ghost", "grinning face", "nerd face", "robot face",
}  # fmt: skip
FACES = r"face-.*|cat-face|monkey-face|emotion"  # the names of most are no nouns
PERSONS = r"person|person-role|person-fantasy"
IRREGULAR = {
    "goose": "geese", "mouse": "mice", "wolf": "wolves", "ox": "oxen", "scarf": "scarves", "tomato": "tomatoes",
    "potato": "potatoes", "mango": "mangoes", "rhinoceros": "rhinoceroses",
} | {name: name for name in ("bison", "deer", "fish", "moose", "sheep", "shrimp", "squid")}  # fmt: skip


class Objects(NamedTuple):
    """What compositions are made of. Objects are numbered 0..len(names) - 1; those with skin tones come last.

    Attributes:
        names: of the objects, one word each; of persons up to two.
        picture: int [N], indices of `load_twemoji(tones=True)`.
        things: number of objects that are no persons.
        subsets: of each of `SUBSETS` the indices: of all things; of animals, food, hearts and shapes; of 58 of these.
        coloured: indices of the objects of one colour.
        countable: indices of those whose names have a plural.
        asymmetric: indices of those with a left and a right.
        toned: int [N - things, 5], indices of the pictures of each person with each tone.
    """

    names: tuple[str, ...]
    picture: np.ndarray
    things: int
    subsets: dict[str, np.ndarray]
    coloured: np.ndarray
    countable: np.ndarray
    asymmetric: np.ndarray
    toned: np.ndarray


@functools.cache
def objects() -> Objects:
    """Choose the objects, in the order of the pictures."""
    drawn = load_twemoji(tones=True)
    chosen, people, toned = [], [], []
    for i in range(len(drawn.alpha)):
        kind, name = drawn.subcategory[i], name_of(drawn.captions[i])
        if re.fullmatch(f"{CORE}|{THINGS}", kind) and not re.fullmatch(FACES, kind):
            if re.fullmatch("[a-z]{3,}", name) and name not in RESERVED:
                chosen.append(i)
        elif re.fullmatch(PERSONS, kind) and re.fullmatch("[a-z]+( [a-z]+)?", name):
            variants = np.flatnonzero((drawn.base == i) & (drawn.tone > 0))
            if not set(name.split()) & RESERVED and drawn.tone[variants].tolist() == [1, 2, 3, 4, 5]:
                people.append(i)
                toned.append(variants)
    names = tuple(name_of(drawn.captions[i]) for i in [*chosen, *people])
    things = np.arange(len(chosen))
    return Objects(
        names=names,
        picture=np.array([*chosen, *people]),
        things=len(chosen),
        subsets={
            name: things[[is_among(name, drawn.subcategory[i], drawn.captions[i]) for i in chosen]] for name in SUBSETS
        },
        coloured=things[[_hue(i) is not None for i in chosen]],
        countable=things[[not is_plural(names[k]) for k in things]],
        asymmetric=things[[_symmetry(i) < SYMMETRY for i in chosen]],
        toned=np.array(toned),
    )


def name_of(captions: tuple[str, ...]) -> str:
    """The caption of the fewest words, the first of them."""
    return min(captions, key=lambda text: len(text.split()))


def plural(name: str) -> str:
    """The plural of a noun, e.g. "cherry" -> "cherries"."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


def is_plural(name: str) -> bool:
    """Whether a name looks like a plural, e.g. "grapes", but not "bus" or "compass"."""
    return name.endswith("s") and not name.endswith(("ss", "us", "is"))


def is_among(subset: str, subcategory: str, captions: tuple[str, ...]) -> bool:
    """Whether a picture, a face or an object, is one of a subset's."""
    core = re.fullmatch(CORE, subcategory) is not None
    return {"all": True, "core": core, "few": core and bool(FEW.intersection(captions))}[subset]


@functools.lru_cache(maxsize=8192)
def layer(picture: int, side: int, colour: int = -1) -> np.ndarray:
    """An object without its background.

    Args:
        picture: index of `load_twemoji`.
        side: in pixels.
        colour: index of `COLOURS`; -1 keeps the object's own.

    Returns:
        float32 [side, side, 4] in [0, 255], colours times opacity, and opacity; read-only.

    Raises:
        ValueError: the object is not of one colour.
    """
    full = _premultiplied(picture)
    if colour >= 0:
        own = _hue(picture)
        if own is None:
            name = name_of(load_twemoji().captions[picture])
            raise ValueError(f"a {name} is not of one colour, and so can't be {COLOURS[colour]}")
        full = _rotated(full, HUES[colour] - own)
    out = scaled(full, side).astype(np.float32)
    out.flags.writeable = False
    return out


def scaled(x: np.ndarray, side: int) -> np.ndarray:
    """Reduce a square picture by averaging areas.

    Args:
        x: [H, H, C].
        side: in pixels, at most H.

    Returns:
        [side, side, C].
    """
    edges = np.arange(side + 1) * (len(x) / side)
    pixel = np.arange(len(x))
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    mean = np.maximum(overlap, 0) * (side / len(x))
    return np.einsum("ih,jw,hwc->ijc", mean, mean, x, optimize=True)


def hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and brightness in [0, 1], of colours.

    Args:
        rgb: [..., 3], in [0, 1].

    Returns:
        three arrays [...].
    """
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    r, g, b = np.moveaxis(rgb, -1, 0)
    sector = np.select([high == r, high == g], [(g - b) / safe % 6, (b - r) / safe + 2], (r - g) / safe + 4)
    return 60 * sector, chroma / np.where(high > 0, high, 1), high


def from_hsv(hue: np.ndarray, saturation: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """The inverse of `hsv`.

    Returns:
        [..., 3], in [0, 1].
    """
    place = (np.array([5.0, 3.0, 1.0]) + np.asarray(hue)[..., None] / 60) % 6
    ramp = np.clip(np.minimum(place, 4 - place), 0, 1)
    return np.asarray(brightness)[..., None] * (1 - np.asarray(saturation)[..., None] * ramp)


# Pale, so that an object of any colour can be seen on them.
BACKGROUNDS = np.rint(255 * from_hsv(np.array(HUES), np.full(len(HUES), 0.4), np.ones(len(HUES))))


def _premultiplied(picture: int) -> np.ndarray:
    """Colours times opacity, and opacity: the inverse of the composition on white."""
    drawn = load_twemoji()
    alpha = drawn.alpha[picture][..., None].astype(float)
    colour = np.clip(drawn.x[picture].astype(float) - 255 + alpha, 0, alpha)
    return np.concatenate([colour, alpha], -1)


def _coloured(full: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hue, saturation and brightness, and which pixels have a colour."""
    rgb = full[..., :3] / np.maximum(full[..., 3:], 1)
    parts = hsv(rgb)
    return *parts, (full[..., 3] > 0) & (parts[1] >= SATURATION) & (parts[2] >= BRIGHTNESS)


def _rotated(full: np.ndarray, degrees: float) -> np.ndarray:
    hue, saturation, brightness, coloured = _coloured(full)
    rotated = from_hsv(hue + degrees, saturation, brightness) * full[..., 3:]
    return np.concatenate([np.where(coloured[..., None], rotated, full[..., :3]), full[..., 3:]], -1)


def _hue(picture: int) -> float | None:
    """The hue of an object of one colour, in degrees; None: it has several or none."""
    full = _premultiplied(picture)
    hue, saturation, brightness, coloured = _coloured(full)
    weight = full[..., 3] * coloured
    if weight.sum() < COLOURED * full[..., 3].sum():
        return None
    if any(
        np.average(each, weights=weight) < least for each, least in zip((saturation, brightness), VIVID, strict=True)
    ):
        return None
    mean = np.sum(weight * np.exp(1j * np.deg2rad(hue))) / weight.sum()
    return float(np.rad2deg(np.angle(mean))) if abs(mean) >= AGREEMENT else None


def _symmetry(picture: int) -> float:
    """Correlation of a picture on white with its mirror image."""
    x = load_twemoji().x[picture].astype(float)
    x -= x.mean((0, 1))
    return float(np.sum(x * x[:, ::-1]) / np.sum(x * x))
