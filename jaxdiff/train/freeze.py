"""Training a part of a tree of parameters: the part is a tree, too, and so is the rest."""

import re
from typing import Any

from jaxdiff import trees


def partition(params: Any, pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cut a tree in two by the paths of its leaves.

    Args:
        params: a nested dict.
        pattern: a regular expression, looked for in the dotted path of a leaf ("mid_block.resnets.0.conv1.kernel").

    Returns:
        (the leaves that it finds, the rest), each a nested dict.

    Raises:
        ValueError: it is no regular expression, or finds none.
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
    """Put together what `partition` cut."""
    both = {name: combine(below, other[name]) for name, below in tree.items() if name in other}
    return {**other, **tree, **both}
