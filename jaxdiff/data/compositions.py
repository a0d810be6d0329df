"""A grammar of captions, and the pictures that they describe, with whole combinations held out.

    [a] [small|large] [COLOUR] NAME [on the PLACE] [on a COLOUR background]
    NAME and NAME          from left to right
    two|three NAMES
    mirrored NAME          of objects with a left and a right
    NAME, TONE skin tone

Pairs of an object and a colour, an object and a place, a person and a tone, and a first and a second object are held
out by Latin squares: of the n colours, object i never has number -i modulo n, and so on. So every word occurs in
training, and no held-out pair does.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.objects import COLOURS, COUNTS, PLACES, SIZES, SUBSETS, is_among, objects, plural
from jaxdiff.data.render import render
from jaxdiff.data.twemoji import TONES, load_twemoji
from jaxdiff.schema import integer

__all__ = ["KINDS", "Composition", "Compositions", "Preview", "caption", "draw", "is_held_out", "previews", "select"]

KINDS = ("object", "pair", "number", "mirrored", "tone")
SHARES = (0.5, 0.2, 0.1, 0.1, 0.1)  # of the kinds, in training
HELD_OUT_SHARES = (0.6, 0.25, 0, 0, 0.15)
SIZED, TINTED, PLACED, GROUNDED, ARTICLED = 0.4, 0.5, 0.5, 0.3, 0.5  # shares of single objects with each attribute
PAIRS = 5  # of each object's pairs with another, one in so many is held out
LENGTH, BLOCK = 2**18, 2**12  # of a source, and examples drawn together: single draws take longer than rendering
LANES = 16  # random numbers for an example
PLAIN = ("grinning face", "dog face", "pizza", "strawberry", "octopus")  # among the previews
PREVIEWS = ((6, 2, 1, 1, 0), (3, 2, 0, 0, 0))  # of each kind, seen and held out


class Composition(NamedTuple):
    """What a caption says, or what B captions say: integers, or int64 [B]; -1 where nothing is said.

    Attributes:
        kind: index of `KINDS`.
        object: number of an object, see `objects`.
        other: number of the object on the right, of a pair.
        size: index of `SIZES`.
        colour: index of `COLOURS`.
        place: index of `PLACES`.
        background: index of `COLOURS`.
        number: 2 or 3.
        tone: index of `TONES`.
        article: 1 if the caption begins with "a" or "an".
    """

    kind: Any
    object: Any
    other: Any
    size: Any
    colour: Any
    place: Any
    background: Any
    number: Any
    tone: Any
    article: Any


class Preview(NamedTuple):
    """A caption to draw pictures of while a model is trained.

    Attributes:
        caption: the caption.
        held_out: whether training never says this.
        composition: what it says; None for the name of a picture.
    """

    caption: str
    held_out: bool
    composition: Composition | None


@dataclass(frozen=True)
class Compositions:
    """A source of compositions and plain pictures with their names; example i is a function of (seed, i).

    Plain pictures are those of "twemoji" without names that say a held-out combination, e.g. "light blue heart".

    Attributes:
        seed: a non-negative integer.
        share: of compositions; the others are plain pictures.
        subset: "all"; "core", animals, food, hearts, shapes and faces alone, 419 pictures; or "few", 66 of these.
    """

    seed: int = 0
    share: float = 0.5
    subset: str = "all"

    shape = (32, 32, 3)
    num_classes = 0
    class_names = ()

    @property
    def captions(self) -> tuple[tuple[str, ...], ...]:
        """Texts with every word of its captions, of which there are too many to list."""
        return tuple((text,) for text in texts(self.subset))

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        if self.subset not in SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, got {self.subset!r}")

    @property
    def previews(self) -> tuple[Preview, ...]:
        """See `previews`."""
        return previews(self.subset)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, inside = divmod(integer("index", index, 0, LENGTH - 1), BLOCK)
        drawn, lanes = _block(self.seed, number, self.subset)
        mix, picture, text = lanes[:, inside].tolist()
        if mix < self.share * 2**32:
            composition = select(drawn, inside)
            return {"x": render(composition), "captions": (caption(composition),)}
        pictures = plain(self.subset)
        chosen, captions = pictures[picture * len(pictures) >> 32]
        return {"x": load_twemoji().x[chosen], "captions": (captions[text * len(captions) >> 32],)}


@functools.cache
def plain(subset: str = "all") -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The plain pictures of training and their captions, without those that say a held-out combination.

    Args:
        subset: see `Compositions`.

    Returns:
        pairs of an index of `load_twemoji` and of captions, at least one.
    """
    named = ((i, tuple(text for text in texts if not _says_held_out(text))) for i, texts in _named(subset))
    return tuple((i, texts) for i, texts in named if texts)


def _named(subset: str) -> list[tuple[int, tuple[str, ...]]]:
    drawn = load_twemoji()
    return [(i, texts) for i, texts in enumerate(drawn.captions) if is_among(subset, drawn.subcategory[i], texts)]


def _says_held_out(text: str) -> bool:
    """Whether a name has a held-out combination in it, as "light blue heart" and "curry and rice" do."""
    tinted, numbers = _names()
    words = re.findall(r"\w+", text.lower())
    return not tinted.isdisjoint(pairwise(words)) or any(
        a in numbers and b == "and" and c in numbers and _held_pair(numbers[a], numbers[c])
        for a, b, c in zip(words, words[1:], words[2:], strict=False)
    )


@functools.cache
def _names() -> tuple[set[tuple[str, str]], dict[str, int]]:
    """Held-out colours with their objects, and numbers of objects by name."""
    table = objects()
    tinted = {(COLOURS[_held(i, len(COLOURS))], table.names[i]) for i in table.coloured.tolist()}
    return tinted, {name: i for i, name in enumerate(table.names[: table.things])}


def draw(seed: int, start: int = 0, count: int = 1, *, held_out: bool = False, subset: str = "all") -> Composition:
    """Draw compositions number start..start + count - 1.

    Args:
        seed: a non-negative integer.
        start: number of the first composition; each is a function of (seed, number).
        count: number of compositions.
        held_out: draw those of the test, each with a held-out pair; otherwise those of training, without any.
        subset: see `Compositions`; of "core" and "few" none is a person.

    Returns:
        the compositions, int64 [count].
    """
    return _draw(_lanes(seed, start, count), held_out, subset)


def select(compositions: Composition, index: Any) -> Composition:
    """The compositions at an index, or at several, of many."""
    return Composition(*(np.asarray(field)[index] for field in compositions))


def is_held_out(c: Composition) -> np.ndarray:
    """Whether compositions have a held-out pair.

    Args:
        c: B compositions, or a single one.

    Returns:
        bool, [B] or [].
    """
    c = Composition(*map(np.asarray, c))
    return (
        ((c.colour >= 0) & (c.colour == _held(c.object, len(COLOURS))))
        | ((c.place >= 0) & (c.place == _held(c.object, len(PLACES))))
        | ((c.tone >= 0) & (c.tone == _held(c.object, len(TONES))))
        | ((c.other >= 0) & _held_pair(c.object, c.other))
    )


def caption(c: Composition) -> str:
    """The caption of a single composition."""
    kind, name = KINDS[c.kind], objects().names[c.object]
    if kind == "pair":
        return f"{name} and {objects().names[c.other]}"
    if kind == "number":
        return f"{COUNTS[int(c.number)]} {plural(name)}"
    if kind == "tone":
        return f"{name}, {TONES[c.tone]} skin tone"
    text = " ".join(
        (["mirrored"] if kind == "mirrored" else [])
        + ([SIZES[c.size]] if c.size >= 0 else [])
        + ([COLOURS[c.colour]] if c.colour >= 0 else [])
        + [name]
    )
    text = _with_article(text) if c.article == 1 else text
    text += f" on the {PLACES[c.place]}" if c.place >= 0 else ""
    return text + (f" on {_with_article(COLOURS[c.background])} background" if c.background >= 0 else "")


def texts(subset: str = "all") -> list[str]:
    """Texts that hold every word of training's captions, and of names that are left out of it.

    Args:
        subset: see `Compositions`.
    """
    table = objects()
    names = [table.names[i] for i in (range(len(table.names)) if subset == "all" else table.subsets[subset])]
    words = ["a an and on the background mirrored", *COUNTS.values(), *SIZES, *COLOURS, *PLACES]
    words += [] if subset != "all" else ["skin tone", *TONES]
    return [*(text for _, each in _named(subset) for text in each), *names, *map(plural, names), *words]


def previews(subset: str = "all") -> tuple[Preview, ...]:
    """Twenty captions for previews, the same in every run: five names, ten compositions, five held-out ones."""
    out = [Preview(name, False, None) for name in PLAIN]
    for held_out, counts in enumerate(PREVIEWS):
        drawn = draw(held_out, count=1000, held_out=bool(held_out), subset="few" if subset == "few" else "core")
        for kind, count in enumerate(counts):
            chosen = np.flatnonzero(drawn.kind == kind)
            _, first = np.unique(drawn.object[chosen], return_index=True)  # no object twice
            for i in chosen[np.sort(first)[:count]]:
                c = Composition(*(int(field[i]) for field in drawn))
                out.append(Preview(caption(c), bool(held_out), c))
    return tuple(out)


def _with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _held(index: Any, count: int) -> Any:
    """The attribute, of `count`, that is held out for an object or person."""
    return -index % count


def _held_pair(first: Any, second: Any) -> Any:
    # Twice the second: for most pairs the other order is seen.
    return (first + 2 * second) % PAIRS == 0


def _lanes(seed: int, start: int, count: int) -> np.ndarray:
    """Random integers below 2^32 of examples start..start + count - 1: int64 [LANES, count]."""
    key = np.random.SeedSequence(integer("seed", seed, 0)).generate_state(2, np.uint64).tolist()
    # Philox is counter-based: four words of 64 bits for each count.
    words = np.random.Philox(key=key[0] << 64 | key[1], counter=start * (LANES // 8)).random_raw(count * (LANES // 2))
    return words.view(np.uint32).reshape(count, LANES).T.astype(np.int64)


@functools.lru_cache(maxsize=2 * LENGTH // BLOCK)
def _block(seed: int, number: int, subset: str) -> tuple[Composition, np.ndarray]:
    """Compositions of training, and three more random integers below 2^32 of each."""
    lanes = _lanes(seed, number * BLOCK, BLOCK)
    return _draw(lanes, False, subset), lanes[-3:].copy()


def _draw(lanes: np.ndarray, held_out: bool, subset: str) -> Composition:
    candidates, first, counts = _candidates(subset)
    among = candidates[: counts[0]]
    lane = iter(lanes)

    def pick(n: Any) -> Any:
        return next(lane) * n >> 32

    def coin(share: float) -> Any:
        return next(lane) < share * 2**32

    def attribute(count: int, held: Any) -> Any:
        # From the held-out one onwards, the others follow.
        return (_held(thing, count) + np.where(held, 0, 1 + pick(count - 1))) % count

    shares = np.array(HELD_OUT_SHARES if held_out else SHARES)
    if subset != "all":
        shares[KINDS.index("tone")] = 0
    kind = np.searchsorted(np.cumsum(shares)[:-1] / shares.sum(), next(lane) / 2**32, side="right")
    is_object, is_pair, is_number, is_mirrored, is_tone = (kind == i for i in range(len(KINDS)))
    tinted, placed, sized, grounded = (coin(share) & is_object for share in (TINTED, PLACED, SIZED, GROUNDED))
    by_colour = coin(0.5) & is_object  # which pair of a held-out composition of a single object is held out
    if held_out:
        tinted, placed = tinted | by_colour, placed | (is_object & ~by_colour)
    placed = placed | (is_object & ~(tinted | sized | grounded))  # at least one attribute

    group = np.select([tinted, is_number, is_mirrored, is_tone], [1, 2, 3, 4], 0)
    thing = candidates[first[group] + pick(counts[group])]

    second = pick(len(among))
    while (bad := (_held_pair(thing, among[second]) != held_out) | (among[second] == thing)).any():
        second = np.where(bad, (second + 1) % len(among), second)
    colour = attribute(len(COLOURS), held_out & by_colour)
    place = attribute(len(PLACES), held_out & ~by_colour)
    tone = attribute(len(TONES), held_out)
    others = (colour + 1 + pick(len(COLOURS) - 1)) % len(COLOURS)
    ground = np.where(tinted, others, pick(len(COLOURS)))  # never the object's colour
    fields = [
        (is_pair, among[second]), (sized, pick(len(SIZES))), (tinted, colour), (placed, place), (grounded, ground),
        (is_number, 2 + pick(len(COUNTS))), (is_tone, tone),
    ]  # fmt: skip
    article = coin(ARTICLED) & (is_object | is_mirrored) & np.isin(thing, objects().countable)
    more = [np.where(mask, value, -1) for mask, value in fields]
    return Composition._make([kind, thing, *more, article.astype(np.int64)])


@functools.cache
def _candidates(subset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All things, coloured, countable and asymmetric ones, and persons: concatenated, their begins and lengths."""
    table = objects()
    among = table.subsets[subset]
    groups = [among, *(np.intersect1d(each, among) for each in (table.coloured, table.countable, table.asymmetric))]
    groups.append(np.arange(table.things, len(table.names)))
    counts = np.array([len(group) for group in groups])
    return np.concatenate(groups), np.cumsum(counts) - counts, counts
