"""A picture that the model gets, to make it again."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditions.base import Cond, Condition

__all__ = ["picture"]


def picture(shape: tuple[int, ...], read: Callable[[np.ndarray], np.ndarray]) -> Condition:
    """The condition {"x": float32 [B, *shape]} of an autoencoder: the pictures to reconstruct, taken in turn.

    A training batch's "x" has the same name: it is what a reconstruction is compared with.

    Args:
        shape: of one picture.
        read: numbers int [B], each at least 0 -> pictures [B, *shape]; called when they are needed.

    Returns:
        the condition, without a null; its words are a picture's number.
    """

    def choose(index: np.ndarray) -> Cond:
        return {"x": np.asarray(read(np.asarray(index)), np.float32)}

    def parse(words: str) -> Cond:
        if not words.isdecimal():
            raise ValueError(f"label must be a picture's number, at least 0; got {words}")
        return choose(np.array([int(words)]))

    return Condition({"x": jax.ShapeDtypeStruct(tuple(shape), jnp.float32)}, choose, parse)
