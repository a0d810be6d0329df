"""Conversion of parameter trees to the flat names of PyTorch checkpoints, and back.

There is one rule for all keys, since submodules have the reference's names. The path of a leaf, joined by dots, is its
key except for the last segment:

    kernel [*size, in, out]  ->  weight [out, in, *size]
    scale, embedding         ->  weight, not transposed
    any other                ->  its own name, not transposed

A segment that ends in `.*` contains equal layers, stacked along a leading axis for a scan. Each of its leaves is
several tensors, with the star replaced by the layer's index. So every leaf has its own tensors, and every tensor
belongs to one leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import trees

__all__ = ["TensorSlot", "flatten", "places"]


class TensorSlot(NamedTuple):
    """Where a tensor of a checkpoint belongs.

    Attributes:
        path: path of the leaf in the tree.
        layer: index along the leading axis of stacked layers; None if the leaf is not stacked.
        axes: transposition of the tensor to the leaf's layout.
        shape: shape of the tensor.
    """

    path: tuple[str, ...]
    layer: int | None
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def places(tree: Any, rename: Callable[[str], str | None]) -> dict[str, TensorSlot]:
    """Name the tensors that fill a tree.

    Args:
        tree: a nested dict of arrays or of `jax.ShapeDtypeStruct`.
        rename: this library's key -> the checkpoint's.

    Returns:
        the slots by the checkpoint's keys.

    Raises:
        ValueError: two leaves, or two layers of a leaf, have the same key.
    """
    slots: dict[str, TensorSlot] = {}
    for path, leaf in trees.leaves(tree).items():
        for name, place in _of_leaf(path, leaf.shape):
            key = rename(name)
            if key is None or key in slots:
                raise ValueError(f"{name} gets the key {key!r}, which " + ("is none" if key is None else "is taken"))
            slots[key] = place
    return slots


def flatten(
    tree: Any, rename: Callable[[str], str | None], keys: Iterable[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a tree one by one, in the checkpoint's layout.

    Args:
        tree: a nested dict of arrays.
        rename: this library's key -> the checkpoint's.
        keys: the checkpoint's keys of the tensors; None: all.

    Yields:
        (key, tensor).
    """
    known = places(tree, rename)
    for key in known if keys is None else keys:
        place = known[key]
        leaf = trees.get(tree, place.path)
        value = np.asarray(leaf if place.layer is None else leaf[place.layer])
        yield key, np.asarray(value.transpose(np.argsort(place.axes)), order="C")


def _of_leaf(path: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[tuple[str, TensorSlot]]:
    stars = [i for i, segment in enumerate(path) if segment.endswith(".*")]
    if len(stars) > 1:
        raise ValueError(f"layers are stacked once, not within each other, as in {'/'.join(path)}")
    layer_shape = shape[1:] if stars else shape
    *segments, leaf = path
    if leaf == "kernel":
        # [*size, in, out] from [out, in, *size].
        axes = (*range(2, len(layer_shape)), 1, 0)
        leaf, theirs = "weight", (layer_shape[-1], layer_shape[-2], *layer_shape[:-2])
    else:
        axes, theirs = tuple(range(len(layer_shape))), layer_shape
        leaf = {"scale": "weight", "embedding": "weight"}.get(leaf, leaf)
    name = ".".join([*segments, leaf])
    if not stars:
        yield name, TensorSlot(path, None, axes, theirs)
        return
    before, after = name.split("*")
    for layer in range(shape[0]):
        yield f"{before}{layer}{after}", TensorSlot(path, layer, axes, theirs)
