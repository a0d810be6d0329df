"""Training of a part of the parameters: the part and the rest are trees, too."""

import re
from typing import Any

from jaxdiff import trees
from jaxdiff.types import Params


def partition(params: Params, pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree in two by the paths of its leaves.

    Args:
        params: a nested dict.
        pattern: a regular expression, searched in the dotted path of a leaf ("mid_block.resnets.0.conv1.kernel").

    Returns:
        (the matching leaves, the rest), each a nested dict.

    Raises:
        ValueError: the pattern is not a regular expression, or matches no leaf.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    selected: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for path, leaf in trees.leaves(params).items():
        trees.put(selected if search(".".join(path)) else rest, path, leaf)
    if not selected:
        raise ValueError(f"no parameter's path holds {pattern!r}")
    return selected, rest


def combine(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees, the inverse of `partition`."""
    both = {name: combine(below, other[name]) for name, below in tree.items() if name in other}
    return {**other, **tree, **both}
