"""The order of arrays in a GPU's memory, by rules on paths and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

from jaxdiff import trees

PLATFORM = "gpu"  # whose libraries have an order of their own


def arranged(tree: Any) -> Any:
    """Return a tree of parameters whose arrays on GPUs lie in the order of `format_of`; these are donated."""

    def move(path: tuple[Any, ...], x: Any) -> Any:
        here = next(iter(x.devices())).platform == PLATFORM
        wanted = format_of(path, x.sharding, x) if here else x.sharding
        return x if isinstance(wanted, Sharding) else jax.device_put(x, wanted, donate=True)

    return jax.tree.map_with_path(move, tree)


def format_of(path: tuple[Any, ...], sharding: Sharding, x: Any) -> Sharding | Format:
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
    """Whether an array is the kernel of a convolution."""
    return names[-1:] == ("kernel",) and len(shape) > 2 + trees.stack_axes(names)
