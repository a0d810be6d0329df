"""The types of an experiment's arguments and a command's options: what is allowed, and how it is kept with a run."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

__all__ = ["SEED", "Count", "File", "Kept", "Natural", "Range", "Seed", "Source", "absolute"]


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
        try:
            number = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = None
        if number is None or number < self.least or (self.most is not None and number > self.most):
            allowed = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise ValueError(f"{name} must be an integer {allowed}, got {value!r:.80}")
        return number


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


def absolute(path: str) -> str:
    """The path from the root, so that a run finds it from any folder; an empty one stays."""
    return os.path.abspath(path) if path else path


def _absolute_source(name: str) -> str:
    folder = "folder:"
    return folder + absolute(name.removeprefix(folder)) if name.startswith(folder) else name


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
SEED = Range(0, 2**64 - 1)
Seed = Annotated[int, SEED]
File = Annotated[str, Kept(absolute)]  # names a file or folder
Source = Annotated[str, Kept(_absolute_source)]  # one for `data.open_source`
