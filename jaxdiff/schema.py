"""Checks of values in untrusted files: their types, ranges and lengths.

Checks precede the use of values, so that later code can rely on their types, and so that an absurd number raises an
error with its name instead of causing minutes of work.

    count = whole_number(1, 100)
    optional(each(count, 8)).check("widths", [64, 128])
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "FLAG",
    "GUIDANCE",
    "WORD",
    "Kind",
    "choice",
    "each",
    "either",
    "integer",
    "look_up",
    "mapping",
    "number",
    "optional",
    "whole_number",
]


T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        allowed: description of the kind, after "must be".
        holds: value -> whether it is of this kind.
    """

    allowed: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> Any:
        """Return the value if it is of this kind.

        Args:
            name: name of the value, for the message.
            value: any value.

        Raises:
            ValueError: the value is of another kind.
        """
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r:.80}")
        return value


def whole_number(low: int, high: int) -> Kind:
    """A whole number in a range, both ends included; not a boolean."""
    return Kind(f"a whole number from {low:,} to {high:,}", lambda v: _is(v, Integral) and low <= v <= high)


def number(low: float, high: float) -> Kind:
    """A number in a range, both ends included; not a boolean or NaN."""
    return Kind(f"a number from {low:,} to {high:,}", lambda v: _is(v, Real) and low <= v <= high)


def choice(*allowed: Any) -> Kind:
    """One of several values."""
    return Kind(" or ".join(map(repr, allowed)), lambda v: any(type(v) is type(a) and v == a for a in allowed))


def each(kind: Kind, most: int, least: int = 1) -> Kind:
    """A list of `least` to `most` values of one kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most and all(map(kind.holds, value))

    return Kind(f"a list of {least} to {most:,} values, each {kind.allowed}", holds)


def mapping(kind: Kind, most: int) -> Kind:
    """An object with at most `most` values, all of one kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, dict) and len(value) <= most and all(map(kind.holds, value.values()))

    return Kind(f"an object of at most {most:,} values, each {kind.allowed}", holds)


def either(*kinds: Kind) -> Kind:
    """A value of one of several kinds."""
    return Kind(" or ".join(kind.allowed for kind in kinds), lambda v: any(kind.holds(v) for kind in kinds))


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return either(kind, Kind("null", lambda v: v is None))


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return an argument as an integer, and check that it is in a range, both ends included.

    Args:
        name: name of the argument, for the message.
        value: any value; numpy integers are integers, True and False are not.
        low: the smallest allowed integer.
        high: the largest allowed integer; None: no upper bound.

    Raises:
        ValueError: the value is not an integer, or is out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r:.80}")
    return number


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def look_up(table: Mapping[str, T], name: Any, what: str, where: str = "") -> T:
    """Return the entry of a table.

    Args:
        table: entries by name.
        name: any value.
        what: kind of the name, for the message.
        where: text after the name in the message.

    Raises:
        ValueError: the table has no such name; the message lists all names.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {name!r:.80}{where}; there are: {', '.join(sorted(table))}")
    return table[name]


FLAG = Kind("true, false or null", lambda v: v is None or isinstance(v, bool))
GUIDANCE = number(-1000, 1000)  # the scale of guidance; 1 is off
WORD = Kind("a string of at most 100 characters", lambda v: isinstance(v, str) and len(v) <= 100)
