"""Paths in trees of arrays: their names, nested dicts from flat ones, and axes that count stacked layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

__all__ = ["flatten", "get", "keys", "leaves", "nest", "put", "stack_axes"]


def keys(path: Sequence[Any]) -> tuple[str, ...]:
    """Return the keys of a path of `jax.tree_util`, e.g. a dict's key, a field's name or an index.

    Args:
        path: entries, e.g. of `jax.tree_util.tree_map_with_path`.

    Returns:
        a string for each entry.
    """
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """Return a tree's leaves by the keys of their paths, in the tree's order."""
    return {keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flatten(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves by their names: the keys of a path, joined by slashes.

    >>> flatten({"conv": {"bias": 1, "kernel": 2}, "scales": [3, 4]})
    {'conv/bias': 1, 'conv/kernel': 2, 'scales/0': 3, 'scales/1': 4}
    """
    return {"/".join(path): leaf for path, leaf in leaves(tree).items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested dict of leaves, the inverse of `flatten` for trees of dicts.

    Args:
        flat: leaves by name, as from `flatten`.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        put(tree, name.split("/"), leaf)
    return tree


def get(tree: Any, path: Sequence[str]) -> Any:
    """Return an entry of a nested dict.

    Args:
        tree: the dict.
        path: keys of the entry.
    """
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set an entry of a nested dict, and create missing dicts on its path.

    Args:
        tree: the dict, changed in place.
        path: keys of the entry, at least one.
        value: new value of the entry.
    """
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def stack_axes(path: Sequence[str]) -> int:
    """Return the number of leading axes of stacked layers of a parameter: one for each key that ends in ".*".

    Args:
        path: keys of the parameter.
    """
    return sum(key.endswith(".*") for key in path)
