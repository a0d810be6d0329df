"""A class by its number or name."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditions.base import Cond, Condition
from jaxdiff.messages import listed

__all__ = ["label"]


def label(num_classes: int, names: Sequence[str] = (), *, null: int | None = -1) -> Condition:
    """The condition {"label": int32 [B]}.

    Args:
        num_classes: at least 1.
        names: of the classes, or none.
        null: the label that stands for no class; -1 is `num_classes`, None that there is none.

    Returns:
        the condition.

    Raises:
        ValueError: there are no classes.
    """
    if num_classes < 1:
        raise ValueError(f"a condition of classes needs data with classes, got num_classes = {num_classes}")

    def choose(index: np.ndarray) -> Cond:
        return {"label": np.asarray(index, np.int32) % num_classes}

    def parse(words: str) -> Cond:
        if words in names:
            return {"label": np.array([list(names).index(words)], np.int32)}
        number = int(words) if words.isdecimal() else -1
        if not 0 <= number < num_classes:
            known = f", or one of {listed(names)}" if names else ""
            raise ValueError(f"label must be in 0..{num_classes - 1}{known}; got {words!r}")
        return {"label": np.array([number], np.int32)}

    index = num_classes if null == -1 else null
    absent = None if index is None else {"label": jnp.full((1,), index, jnp.int32)}
    spec = {"label": jax.ShapeDtypeStruct((), jnp.int32)}
    return Condition(spec, choose, parse, choices=num_classes, names=tuple(names), null=absent)
