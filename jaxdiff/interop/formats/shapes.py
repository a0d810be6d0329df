"""Sizes of a network from the names and shapes of a file's tensors, any of which may be missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["at_most", "count", "shape", "side"]

Tensors = Mapping[str, Any]


def shape(tensors: Tensors, name: str, ndim: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor that has to be there.

    Args:
        tensors: by name.
        name: of the tensor.
        ndim: the number of its axes; None: any.

    Raises:
        ValueError: it is missing, has another number of axes, or no elements.
    """
    if name not in tensors:
        raise ValueError(f"the tensors are not those of such a network: {name} is missing")
    size = tensors[name].shape
    if 0 in size or (ndim is not None and len(size) != ndim):
        axes = "" if ndim is None else f" {ndim} axes and"
        raise ValueError(f"the tensors are not those of such a network: {name} must have{axes} elements, got {size}")
    return size


def side(tensors: Tensors, name: str, axis: int) -> int:
    """The length of an axis of a tensor that has to be there; see `shape`."""
    size = shape(tensors, name)
    if len(size) <= axis:
        raise ValueError(f"the tensors are not those of such a network: {name} has no axis {axis}, got {size}")
    return size[axis]


def count(tensors: Tensors, prefix: str) -> int:
    """How many there are of what is counted after a name: "down.0.conv", "down.1.conv" are two of "down".

    Raises:
        ValueError: there are more than tensors, so that some number is none that counts.
    """
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(f"{prefix}.")}
    return at_most(tensors, 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1), prefix)


def at_most(tensors: Tensors, number: int, what: str) -> int:
    """A number of parts, of which each has a tensor."""
    if number > len(tensors):
        raise ValueError(f"{number} of {what} are named, and there are {len(tensors)} tensors")
    return number
