"""Sizes of a network from the names and shapes of a file's tensors, which may be missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_count", "count", "shape", "side"]

Tensors = Mapping[str, Any]


def shape(tensors: Tensors, name: str, ndim: int | None = None) -> tuple[int, ...]:
    """Return the shape of a required tensor.

    Args:
        tensors: by name.
        name: name of the tensor.
        ndim: required number of axes; None: any.

    Raises:
        ValueError: the tensor is missing, has another number of axes, or is empty.
    """
    if name not in tensors:
        raise ValueError(f"the tensors are not those of such a network: {name} is missing")
    size = tensors[name].shape
    if 0 in size or (ndim is not None and len(size) != ndim):
        axes = "" if ndim is None else f" {ndim} axes and"
        raise ValueError(f"the tensors are not those of such a network: {name} must have{axes} elements, got {size}")
    return size


def side(tensors: Tensors, name: str, axis: int) -> int:
    """Return the length of an axis of a required tensor; see `shape`."""
    size = shape(tensors, name)
    if len(size) <= axis:
        raise ValueError(f"the tensors are not those of such a network: {name} has no axis {axis}, got {size}")
    return size[axis]


def count(tensors: Tensors, prefix: str) -> int:
    """Count the numbered parts after a prefix: "down.0.conv" and "down.1.conv" are two of "down".

    Raises:
        ValueError: there are more parts than tensors.
    """
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(f"{prefix}.")}
    return check_count(tensors, 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1), prefix)


def check_count(tensors: Tensors, number: int, what: str) -> int:
    """Check that there are enough tensors for a number of parts, and return the number."""
    if number > len(tensors):
        raise ValueError(f"{number} of {what} are named, and there are {len(tensors)} tensors")
    return number
