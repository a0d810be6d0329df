"""The type of a medium: what a model makes, and how an example of it is shown, saved and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jaxdiff.conditions import Cond, Condition
from jaxdiff.options import Range
from jaxdiff.parameterize import Params

__all__ = ["Evaluator", "Medium", "Report", "Samples", "as_decoded"]


class Samples(NamedTuple):
    """Examples that a model has drawn, on the host.

    Attributes:
        x: [N, ...], decoded.
        cond: what was asked for, leaves [N, ...].
        choices: how many conditions took turns; 0: one or none.
        path: [steps + 1, N, *shape], x before each step and at the end, for a medium that shows it.
        names: of each example, what was asked for in words, where it has any.
        held_out: bool [N], whether training never showed that; None: nothing is held out.
    """

    x: np.ndarray
    cond: Cond
    choices: int = 0
    path: np.ndarray | None = None
    names: tuple[str, ...] = ()
    held_out: np.ndarray | None = None

    def __repr__(self) -> str:
        arrays = {"x": self.x, **self.cond}.items()
        return f"Samples({', '.join(f'{name}: {a.dtype}{list(a.shape)}' for name, a in arrays)})"

    def numbers(self) -> dict[str, np.ndarray]:
        """Return the entries of `cond` that are one number for each example, such as labels."""
        return {name: np.asarray(a) for name, a in self.cond.items() if np.ndim(a) == 1}


class Report(NamedTuple):
    """What an evaluation has found.

    Attributes:
        values: what JSON can hold.
        text: the same for a person.
    """

    values: dict[str, Any]
    text: str


Evaluator = Callable[[Samples], Report]


def as_decoded(params: Params, x: Array) -> Array:
    """The samples as they are."""
    return x


@dataclass(frozen=True)
class Medium:
    """What a model makes: images, points, sounds.

    Attributes:
        shape: of one example, as the network gets it.
        save: (file or folder, samples) writes them; its suffix, one of `suffixes`, decides how.
        suffixes: of the files that `save` writes, the first for previews; "" is a folder.
        decode: (params, x) -> x as people want it, on the devices, e.g. images of latents.
        encode: (params, what decode gives) -> x, e.g. latents of images; None: nothing begins with what is given.
        preview: examples in a preview and drawn at a time; the last preview has `last` of them.
        last: examples in the last preview; None: twice as many.
        path: whether `save` shows how samples came about, `Samples.path`.
        evaluator: (run's folder, condition) -> a function that measures samples against data; None: not measured.
        least_of_each: samples of each of the condition's choices that the evaluator needs.
        prompts: number of samples that are measured -> what they are asked for, in words; None: the condition's choices
            take turns.
    """

    shape: tuple[int, ...]
    save: Callable[[Path, Samples], Any] = field(repr=False)
    suffixes: tuple[str, ...] = (".npz",)
    decode: Callable[[Params, Array], Array] = field(default=as_decoded, repr=False)
    encode: Callable[[Params, Array], Array] | None = field(default=None, repr=False)
    preview: int = 50
    last: int | None = None
    path: bool = False
    evaluator: Callable[[Path, Condition], Evaluator] | None = field(default=None, repr=False)
    least_of_each: int = 0
    prompts: Callable[[int], Sequence[str]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        Range(1).check("medium.preview", self.preview)
        for length in self.shape:
            Range(1).check("medium.shape", length)
        if self.last is not None:
            Range(1).check("medium.last", self.last)
        if not self.suffixes or any(suffix and not suffix.startswith(".") for suffix in self.suffixes):
            raise ValueError(f'medium.suffixes must be like ".png", or "" for a folder, got {self.suffixes}')
