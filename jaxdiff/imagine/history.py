"""Histories of pictures: what each was asked for, with which seed, and which picture it was made of.

`begin`, `vary`, `remix` and `upscale` take a history and return a longer one; nothing is drawn here. Pictures are
numbered from 1, and picture n has the key of example n - 1 of its seed, so that no two pictures of a history share
their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

from jaxdiff.imagine.hint_file import Hint, check_hint
from jaxdiff.options import SEED
from jaxdiff.quantize import Weights
from jaxdiff.schema import GUIDANCE, integer, number

__all__ = ["LARGEST", "MOST", "History", "Picture", "begin", "lineage", "remix", "upscale", "vary"]

MOST = 10_000  # pictures
LARGEST = 16  # times the size of the first pictures
PROMPT = 10_000  # characters


class Picture(NamedTuple):
    """What a picture is made from.

    Attributes:
        prompt: what it shows.
        seed: of its noise.
        guidance: scale.
        parent: number of the picture that it is made of; None: of noise alone.
        strength: how much of the parent is changed, in (0, 1]; None without a parent.
        scale: its height over that of a picture without a parent.
        x0: fingerprint of the numbers that were drawn first, see `imagine.fingerprint`; None: not drawn yet.
        hints: of each of the history's controls what it follows, and its scale.
    """

    prompt: str
    seed: int
    guidance: float
    parent: int | None = None
    strength: float | None = None
    scale: int = 1
    x0: str | None = None
    hints: tuple[Hint, ...] = ()


class History(NamedTuple):
    """Pictures, and the model that draws them.

    Attributes:
        weights: fingerprint of the model's parameters.
        steps: number of steps.
        guidance: the usual scale.
        solver: name of the solver, in place of the model's own.
        size: (height, width) of the first pictures, where it can be chosen.
        param_dtype: "int8" or "float8", where the model's kernels are in 8 bits.
        controls: what steers the model, by the places of its files.
        pictures: in the order of their numbers, which begin at 1.
    """

    weights: str
    steps: int
    guidance: float
    solver: str | None = None
    size: tuple[int, int] | None = None
    param_dtype: Weights | None = None
    controls: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def picture(self, n: int) -> Picture:
        """Return picture number n.

        Raises:
            ValueError: there is no such picture.
        """
        count = len(self.pictures)
        if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= count:
            there_are = f"pictures 1 to {count}" if count else "no pictures yet"
            raise ValueError(f"there is no picture {n!r:.80}: the history has {there_are}")
        return self.pictures[n - 1]


def begin(
    history: History,
    prompt: str,
    *,
    num: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    hints: Sequence[Hint] = (),
) -> History:
    """Add pictures of a prompt.

    Args:
        history: the pictures so far.
        prompt: what they show, in the words that the model's condition knows.
        num: how many.
        seed: of their noise.
        guidance: scale, 1 is off; None is the usual one.
        hints: what they follow, one for each of the history's controls; see `make_hint`.

    Returns:
        the longer history.

    Raises:
        ValueError: a prompt that is no text or too long, a number out of range, or another number of hints.
    """
    guidance = history.guidance if guidance is None else guidance
    return _add(history, Picture(prompt, seed, guidance, hints=tuple(hints)), num)


def vary(
    history: History,
    n: int,
    *,
    strength: float = 0.6,
    num: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    hints: Sequence[Hint] | None = None,
) -> History:
    """Add variations of a picture: noised to a level and denoised again, with other keys (SDEdit, Meng et al. 2021,
    arXiv:2108.01073).

    Args:
        history: the pictures so far.
        n: number of the picture.
        strength: the share of the steps that are taken again, in (0, 1]; 1 keeps nothing of the picture.
        num: how many.
        seed: of their noise.
        guidance: scale; None is the picture's.
        hints: what they follow, one for each of the history's controls; None: what the picture follows.

    Returns:
        the longer history.

    Raises:
        ValueError: no such picture, a number out of range, or another number of hints.
    """
    prompt = history.picture(n).prompt
    return remix(history, n, prompt, strength=strength, num=num, seed=seed, guidance=guidance, hints=hints)


def remix(
    history: History,
    n: int,
    prompt: str,
    *,
    strength: float = 0.6,
    num: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    hints: Sequence[Hint] | None = None,
) -> History:
    """Add variations of a picture that are denoised with another prompt.

    Args:
        history: the pictures so far.
        n: number of the picture.
        prompt: what the new ones show.
        strength, num, seed, guidance, hints: as for `vary`.

    Returns:
        the longer history.

    Raises:
        ValueError: no such picture, a prompt that is no text or too long, a number out of range, or another number of
            hints.
    """
    parent = history.picture(n)
    guidance = parent.guidance if guidance is None else guidance
    hints = parent.hints if hints is None else tuple(hints)
    return _add(history, Picture(prompt, seed, guidance, n, strength, parent.scale, hints=hints), num)


def upscale(
    history: History,
    n: int,
    *,
    strength: float | None = None,
    seed: int = 0,
    guidance: float | None = None,
    hints: Sequence[Hint] | None = None,
) -> History:
    """Add a picture at twice the size: enlarged, noised to a level, and denoised at that size.

    Args:
        history: the pictures so far.
        n: number of the picture.
        strength: as for `vary`; None is 0.3 for a directory, whose network is made for several sizes, and else 0.2.
        seed, guidance, hints: as for `vary`.

    Returns:
        the longer history.

    Raises:
        ValueError: no such picture, a number out of range, another number of hints, or a picture that would be too
            large.
    """
    parent = history.picture(n)
    scale = 2 * parent.scale
    if scale > LARGEST:
        raise ValueError(f"pictures grow up to {LARGEST} times, and picture {n} has grown {parent.scale} times already")
    guidance = parent.guidance if guidance is None else guidance
    hints = parent.hints if hints is None else tuple(hints)
    strength = (0.2 if history.size is None else 0.3) if strength is None else strength
    return _add(history, Picture(parent.prompt, seed, guidance, n, strength, scale, hints=hints), 1)


def lineage(history: History, n: int) -> list[int]:
    """Return the numbers of the pictures that a picture is made of, from the first to itself.

    Args:
        history: the pictures.
        n: number of the picture.

    Raises:
        ValueError: no such picture.
    """
    numbers = [n]
    while (parent := history.picture(numbers[0]).parent) is not None:
        numbers.insert(0, parent)
    return numbers


def _add(history: History, picture: Picture, num: int) -> History:
    checked = check_picture(picture, len(history.controls))
    integer("num", num, 1, MOST - len(history.pictures))
    return history._replace(pictures=(*history.pictures, *[checked] * num))


def check_picture(picture: Picture, controls: int = 0) -> Picture:
    """Return a picture in Python's own numbers.

    Args:
        picture: whose parent is known.
        controls: how many its history has.

    Raises:
        ValueError: it cannot be drawn.
    """
    prompt, strength = picture.prompt, picture.strength
    if not isinstance(prompt, str) or len(prompt) > PROMPT:
        got = f"{len(prompt):,}" if isinstance(prompt, str) else repr(prompt)
        raise ValueError(f"a prompt is a text of up to {PROMPT:,} characters, got {got:.80}")
    if len(picture.hints) != controls:
        raise ValueError(
            f"a history with {controls} controls takes as many --control for each picture, got {len(picture.hints)}"
            if controls
            else "the history was begun without --control: begin another one"
        )
    if picture.parent is not None:
        if number(0, 1).check("strength", strength) == 0:
            raise ValueError("strength must be above 0: without a step nothing changes")
        strength = float(strength)  # type: ignore[arg-type]
    return picture._replace(
        seed=SEED.check("seed", picture.seed),
        guidance=float(GUIDANCE.check("guidance", picture.guidance)),
        parent=None if picture.parent is None else int(picture.parent),
        strength=strength,
        hints=tuple(map(check_hint, picture.hints)),
    )
