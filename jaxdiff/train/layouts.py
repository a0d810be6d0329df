"""The order of arrays in a GPU's memory, by rules on paths and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding

from jaxdiff import trees


def format_of(path: tuple[Any, ...], sharding: NamedSharding, x: Any) -> NamedSharding | Format:
    """Return the sharding of an array, with its order in memory where a GPU's library wants another than the array's.

    cuDNN reads the kernels of convolutions by output channels, then positions, then input channels. Kernels in the
    order of their axes, with their moments and averages, would be transposed in each step.

    Args:
        path: of the array in a tree of parameters or in a `TrainState`.
        sharding: its sharding.
        x: the array, or its shape and dtype.
    """
    names, axes = trees.keys(path), tuple(range(len(x.shape)))
    if not _is_convolution(names, x.shape):
        return sharding
    stacks = trees.stack_axes(names)
    return Format(Layout((*axes[:stacks], axes[-1], *axes[stacks:-1])), sharding)


def inner_axes(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of an array but the outermost in a GPU's memory, see `format_of`.

    Args:
        path: of the array in a tree.
        shape: its shape.
    """
    last = _is_convolution(trees.keys(path), shape) and not trees.stack_axes(trees.keys(path))
    return tuple(range(len(shape) - 1)) if last else tuple(range(1, len(shape)))


def _is_convolution(names: Sequence[str], shape: tuple[int, ...]) -> bool:
    """Whether an array is the kernel of a convolution that is no product."""
    return names[-1:] == ("kernel",) and math.prod(shape[trees.stack_axes(names) : -2]) > 1
