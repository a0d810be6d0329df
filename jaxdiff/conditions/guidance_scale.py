"""The scale of a distilled guidance, as an input of a network."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditions.base import Cond, Condition

__all__ = ["guidance_scale"]


def guidance_scale(condition: Condition, scale: float, max_scale: float | None = None) -> Condition:
    """Add a guidance scale to a condition, for networks with `guidance_dim` (Meng et al. 2023, arXiv:2210.03142).

    The network gets cond["guidance"], float32 [B]. A condition that has it already gets another scale.

    Args:
        condition: of one entry or more.
        scale: of all examples, unless asked for otherwise; 1 is that of the conditional model.
        max_scale: the largest that the network has learned; None where the condition has a scale already.

    Raises:
        ValueError: the scale is not in [1, max_scale].
    """
    if max_scale is None:
        _, max_scale = condition.bounds["guidance"]
    if not 1 <= scale <= max_scale:
        raise ValueError(f"this network has learned guidance from 1 to {max_scale:g}, got {scale:g}")

    def with_scale(cond: Cond) -> Cond:
        return {**cond, "guidance": np.full(len(jax.tree.leaves(cond)[0]), scale, np.float32)}

    return replace(
        condition,
        spec={**condition.spec, "guidance": jax.ShapeDtypeStruct((), jnp.float32)},
        choose=lambda index: with_scale(condition.choose(index)),
        parse=lambda words: with_scale(condition.parse(words)),
        unasked=tuple(sorted({*condition.unasked, "guidance"})),
        bounds={**condition.bounds, "guidance": (1.0, max_scale)},
    )
