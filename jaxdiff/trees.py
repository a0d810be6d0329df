"""Paths in trees of arrays: their names, nested dicts from flat ones, and axes that count stacked layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

__all__ = ["flatten", "get", "keys", "leaves", "nest", "put", "stack_axes"]


def keys(path: Sequence[Any]) -> tuple[str, ...]:
    """Return the keys of a path that `jax.tree_util` made: a dict's key, a field's name, an index.

    Args:
        path: entries, e.g. of `jax.tree_util.tree_map_with_path`.

    Returns:
        A string for each entry.
    """
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """Return a tree's leaves by the keys of their paths, in the tree's order."""
    return {keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flatten(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves by their names, which join the keys of a path by slashes.

    >>> flatten({"conv": {"bias": 1, "kernel": 2}, "scales": [3, 4]})
    {'conv/bias': 1, 'conv/kernel': 2, 'scales/0': 3, 'scales/1': 4}
    """
    return {"/".join(path): leaf for path, leaf in leaves(tree).items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict with these leaves, the inverse of `flatten` for trees of dicts.

    Args:
        flat: leaves by name, as `flatten` names them.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        put(tree, name.split("/"), leaf)
    return tree


def get(tree: Any, path: Sequence[str]) -> Any:
    """Return an entry of a nested dict.

    Args:
        tree: the dict.
        path: its keys.
    """
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set an entry of a nested dict, and make the dicts on its path that do not exist.

    Args:
        tree: the dict, which is changed.
        path: at least one key.
        value: of the entry.
    """
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def stack_axes(path: Sequence[str]) -> int:
    """Return how many leading axes of a parameter count stacked, equal layers: one for each key that ends in ".*".

    Args:
        path: keys of the parameter.
    """
    return sum(key.endswith(".*") for key in path)
