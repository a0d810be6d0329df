"""What a value that comes with a stranger's file may be: its type, its range, its length.

Whatever such a file says is checked before anything is computed or made from it, so that what follows can rely on
types, and so that an absurd number is an error that names it and not minutes of work.

    count = whole(1, 100)
    optional(each(count, 8)).check("widths", [64, 128])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

__all__ = ["FLAG", "WORD", "Kind", "choice", "each", "either", "look_up", "mapping", "number", "optional", "whole"]


T = TypeVar("T")


class Kind(NamedTuple):
    """What a value may be.

    Attributes:
        allowed: in words, to stand behind "must be".
        holds: whether a value is that.
    """

    allowed: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> Any:
        """Return the value.

        Args:
            name: what it is the value of, for the message.
            value: any.

        Raises:
            ValueError: it is of another kind.
        """
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r:.80}")
        return value


def whole(low: int, high: int) -> Kind:
    """A whole number in a range, both ends included; neither true nor false."""
    return Kind(f"a whole number from {low:,} to {high:,}", lambda v: _is(v, Integral) and low <= v <= high)


def number(low: float, high: float) -> Kind:
    """A number in a range, both ends included; neither true nor false, nor NaN."""
    return Kind(f"a number from {low:,} to {high:,}", lambda v: _is(v, Real) and low <= v <= high)


def choice(*allowed: Any) -> Kind:
    """One of some values."""
    return Kind(" or ".join(map(repr, allowed)), lambda v: any(type(v) is type(a) and v == a for a in allowed))


def each(kind: Kind, most: int, least: int = 1) -> Kind:
    """A list of some length, of values of one kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most and all(map(kind.holds, value))

    return Kind(f"a list of {least} to {most:,} values, each {kind.allowed}", holds)


def mapping(kind: Kind, most: int) -> Kind:
    """An object of some size at most, whose values are of one kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, dict) and len(value) <= most and all(map(kind.holds, value.values()))

    return Kind(f"an object of at most {most:,} values, each {kind.allowed}", holds)


def either(*kinds: Kind) -> Kind:
    """A value of one of several kinds."""
    return Kind(" or ".join(kind.allowed for kind in kinds), lambda v: any(kind.holds(v) for kind in kinds))


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return either(kind, Kind("null", lambda v: v is None))


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def look_up(table: Mapping[str, T], name: Any, what: str, where: str = "") -> T:
    """Return what a table has for a name.

    Args:
        table: by name.
        name: any value.
        what: what the name is of, for the message.
        where: what stands behind the name there.

    Raises:
        ValueError: it is no name of the table's; the message lists them.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {name!r:.80}{where}; there are: {', '.join(sorted(table))}")
    return table[name]


FLAG = Kind("true, false or null", lambda v: v is None or isinstance(v, bool))
WORD = Kind("a string of at most 100 characters", lambda v: isinstance(v, str) and len(v) <= 100)
