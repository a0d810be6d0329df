"""The types of an experiment's arguments and a command's options: what is allowed, and how it is kept with a run."""

from __future__ import annotations

import inspect
import math
import os
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jaxdiff.schema import integer

__all__ = [
    "SEED",
    "Autoencoder",
    "Batch",
    "CondDropout",
    "Count",
    "Decay",
    "Encoder",
    "File",
    "Finite",
    "Help",
    "Kept",
    "Natural",
    "Num",
    "Range",
    "Remat",
    "Run",
    "Scale",
    "Seed",
    "Share",
    "Source",
    "Steps",
    "Versions",
    "Width",
    "absolute",
    "checked",
    "kept_knobs",
    "refuse_unused",
]  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Which integers are allowed: a part of an option's type, `Annotated[int, Range(1)]`.

    Attributes:
        least: the least.
        most: the largest; None: any.
    """

    least: int
    most: int | None = None

    def check(self, name: str, value: Any) -> int:
        """Return the value.

        Raises:
            ValueError: it is no integer, or not in the range.
        """
        return integer(name, value, self.least, self.most)


@dataclass(frozen=True)
class Finite:
    """Which numbers are allowed, finite ones: a part of an option's type, `Annotated[float, Finite(0)]`.

    Attributes:
        least: the least.
        most: the largest; by default any.
    """

    least: float
    most: float = math.inf

    def check(self, name: str, value: float) -> float:
        """Return the value.

        Raises:
            ValueError: it is not finite, or not in the range.
        """
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not self.least <= value <= self.most or value == math.inf:
            bounded = self.most < math.inf
            allowed = f"from {self.least:g} to {self.most:g}" if bounded else f"of at least {self.least:g}"
            raise ValueError(f"{name} must be a finite number {allowed}, got {value!r:.80}")
        return value


@dataclass(frozen=True)
class Kept:
    """How text is kept with a run: a part of an option's type, `Annotated[str, Kept(absolute)]`.

    Attributes:
        how: what was given -> what is kept.
    """

    how: Callable[[str], str]

    def check(self, name: str, value: str) -> str:
        """Return what is kept of the value."""
        return self.how(value)


@dataclass(frozen=True)
class Help:
    """What an option is for: a part of its type, where many experiments have the same option.

    Attributes:
        text: as a docstring's Args would say it.
    """

    text: str


def absolute(path: str) -> str:
    """The path from the root, so that a run finds it from any folder; "~" is the home, and an empty one stays."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


def _absolute_source(name: str) -> str:
    kind, colon, path = name.partition(":")
    return kind + colon + absolute(path) if kind in ("folder", "twemoji64") else name


def _absolute_encoder(name: str) -> str:
    return name if name in ("own", "minilm") else absolute(name)


# Programs count in int32. What takes memory by the unit ends earlier, but beyond any use.
Count = Annotated[int, Range(1, 2**31 - 1)]
Natural = Annotated[int, Range(0, 2**31 - 1)]
Steps = Annotated[int, Range(1, 100_000)]  # of a sampler; the history of `jaxdiff imagine` holds no more
Batch = Annotated[int, Range(1, 1_000_000)]
Num = Annotated[int, Range(1, 10_000_000)]  # samples, drawn in batches
Versions = Annotated[int, Range(1, 10_000)]  # of a picture, drawn at once
Scale = Annotated[float, Finite(0)]  # of guidance
Share = Annotated[float, Finite(0, 1)]
SEED = Range(0, 2**64 - 1)
Seed = Annotated[int, SEED]
File = Annotated[str, Kept(absolute)]  # names a file or folder
# One for `data.open_dataset`.
SOURCES = (
    "fashion_mnist, twemoji, twemoji:tones, twemoji64:PACKAGE, openmoji, noto, compositions, compositions:core, "
    "compositions:few, tfds:NAME or folder:PATH."
)
Source = Annotated[str, Kept(_absolute_source), Help(f"data: {SOURCES}")]
# One for `text_encoders.of_captions`.
Encoder = Annotated[str, Kept(_absolute_encoder), Help("of captions: own, minilm, or a directory of CLIP, T5 or BERT.")]
Autoencoder = Annotated[File, Help("folder of the autoencoder that decodes samples; without it they are latents.")]
Decay = Annotated[float, Help("decay of the parameters' average.")]
Width = Annotated[Count, Help("channels at the network's first level.")]
CondDropout = Annotated[Share, Help("share of examples trained without their condition, for classifier-free guidance.")]
Remat = Annotated[
    Literal["none", "dots", "full"],
    Help("what the backward pass computes again: none, dots (all but products) or full (each block)."),
]


@dataclass(frozen=True)
class Run:
    """The knobs that every experiment has; an experiment's argument of this type is all of them."""

    steps: Annotated[Count, Help("updates of the parameters.")]
    batch: Annotated[Batch, Help("examples in an update.")]
    lr: Annotated[float, Finite(0), Help("highest learning rate.")]
    seed: Annotated[Seed, Help("of parameters, training noise and data order.")] = 0
    grad_accum_steps: Annotated[Count, Help("microbatches in an update.")] = 1
    preview_every: Annotated[Natural, Help("steps between two previews; 0: none.")] = 1000


def checked(name: str, kind: Any, value: Any) -> Any:
    """Return a value as its type keeps it: `Count`, `File`, `Count | None`, `tuple[Count, ...]` and so on.

    Args:
        name: what it is called in the message.
        kind: the type, whose parts may be annotated with `Finite`, `Kept` and `Range`.
        value: of that type.

    Raises:
        ValueError: it, or a part of it, is not in its range.
    """
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        for mark in marks:
            if isinstance(mark, (Finite, Kept, Range)):
                value = mark.check(name, value)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r:.80}")
    if value is None:
        return None
    parts = [each for each in get_args(kind) if each not in (type(None), Ellipsis)]
    if get_origin(kind) in (Union, types.UnionType) and len(parts) == 1:
        return checked(name, parts[0], value)
    if get_origin(kind) is tuple:
        return tuple(checked(name, parts[min(i, len(parts) - 1)], part) for i, part in enumerate(value))
    return value


_changed: ContextVar[frozenset[str] | None] = ContextVar("changed", default=None)


@contextmanager
def kept_knobs(changed: Iterable[str] = ()) -> Iterator[None]:
    """Within it `refuse_unused` lets pass what a run has kept, whose defaults may have been others.

    Args:
        changed: names of the knobs that are not the run's own.
    """
    token = _changed.set(frozenset(changed))
    try:
        yield
    finally:
        _changed.reset(token)


def refuse_unused(build: Callable[..., Any], where: str, **knobs: Any) -> None:
    """Raise ValueError if a knob that nothing looks at is not as by default.

    Args:
        build: the function, or the dataclass, that has the knobs and their defaults.
        where: what else was asked for, so that nothing looks at them, such as "--low 0".
        **knobs: their values, by name.
    """
    changed = _changed.get()
    for name, value in knobs.items():
        default = inspect.signature(build).parameters[name].default
        if value != default and (changed is None or name in changed):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{where} takes no {option}, got {value!r:.80}: leave it out, its default is {default!r}")
