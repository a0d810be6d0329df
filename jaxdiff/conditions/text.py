"""A text, of which the model gets arrays that text encoders made: rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from jaxdiff.conditions.base import Cond, Condition

__all__ = ["text"]


def text(table: Mapping[str, np.ndarray]) -> Condition:
    """The condition of prompts whose encodings are known.

    Args:
        table: name -> array [P + 1, ...]: one row per prompt; the last row is the null prompt of condition dropout.

    Returns:
        the condition, whose entries are the table's. Without prompts its examples are unconditional.

    Raises:
        ValueError: arrays of different lengths, or none.
    """
    table = {
        name: a if a.dtype.itemsize <= 4 and a.dtype.kind != "i" else a.astype(np.float32) for name, a in table.items()
    }
    lengths = {len(array) for array in table.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"a table of prompts needs as many rows in each array, at least 1, got {sorted(lengths)}")
    prompts = lengths.pop() - 1

    def choose(index: np.ndarray) -> Cond:
        rows = np.asarray(index) % prompts if prompts else np.zeros_like(index)
        return {name: array[rows] for name, array in table.items()}

    def parse(words: str) -> Cond:
        if not (words.isdecimal() and int(words) < prompts):
            allowed = f"a prompt's number in 0..{prompts - 1}" if prompts else "left out, since the run has no prompts"
            raise ValueError(f"label must be {allowed}; got {words}")
        return choose(np.array([int(words)]))

    spec = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in table.items()}
    return Condition(spec, choose, parse, choices=prompts, null={name: array[-1:] for name, array in table.items()})
