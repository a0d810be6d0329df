"""No condition: an unconditional model."""

from __future__ import annotations

from jaxdiff.conditions.base import Cond, Condition

__all__ = ["none"]


def none() -> Condition:
    """The condition of an unconditional model."""

    def parse(words: str) -> Cond:
        if words:  # the empty prompt asks for nothing
            raise ValueError(f"this run has no condition to ask for, got {words!r}")
        return {}

    return Condition({}, lambda index: {}, parse)
