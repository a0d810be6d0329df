"""A class, with a picture that steers the network."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditions.base import Cond, Condition

__all__ = ["hint"]


def hint(classes: Condition, pictures: np.ndarray) -> Condition:
    """Add {"hint": float32 [B, H, W, C] in [0, 1]} to a condition of classes.

    Args:
        classes: from `label`; its null condition keeps the hint.
        pictures: uint8 [num_classes, H, W, C], one for each class that is asked for.

    Returns:
        The condition.
    """

    def with_hint(cond: Cond) -> Cond:
        return {**cond, "hint": pictures[cond["label"]].astype(np.float32) / 255}

    return replace(
        classes,
        spec={**classes.spec, "hint": jax.ShapeDtypeStruct(pictures.shape[1:], jnp.float32)},
        choose=lambda index: with_hint(classes.choose(index)),
        parse=lambda words: with_hint(classes.parse(words)),
    )
