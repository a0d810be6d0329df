"""A picture as a condition, next to a class or a text: one that steers the network, or one to make larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.conditions.base import Cond, Condition
from jaxdiff.levels import Level, q_sample
from jaxdiff.noise import normal_like
from jaxdiff.resize import bicubic

__all__ = ["hint", "noised"]

_NOISE = 1000.0  # a network's sinusoids are made for times of hundreds


def hint(condition: Condition, pictures: np.ndarray, numbers: Sequence[int] | np.ndarray | None = None) -> Condition:
    """Add {"hint": float32 [B, H, W, C] in [0, 1]} to a condition.

    Args:
        condition: a class, a text or none; its null condition, and a negative, keep the hint.
        pictures: uint8 [N, H, W, C]: examples, which take turns within a choice of the condition.
        numbers: int [N], the choice that each belongs to; None: picture i to choice i, or all to none.

    Returns:
        the condition. Choices without pictures have no turn, and words for them are refused.

    Raises:
        ValueError: other pictures, or numbers that are not one choice for each.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or not len(pictures):
        raise ValueError(f"pictures must be uint8 [N, H, W, C], got {pictures.dtype}{list(pictures.shape)}")
    choices = max(condition.choices, 1)
    numbers = np.asarray(np.arange(len(pictures)) % choices if numbers is None else numbers)
    if numbers.shape != pictures.shape[:1] or numbers.min() < 0 or numbers.max() >= choices:
        raise ValueError(
            f"numbers must be {len(pictures)} choices in 0..{choices - 1}, one for each picture, got {numbers!r:.80}"
        )
    present = np.unique(numbers)
    own = [np.flatnonzero(numbers == number) for number in present]

    @cache
    def turns() -> dict[Any, int]:
        """The first turn of each condition."""
        return {_bytes(condition, condition.choose(present[[turn]])): turn for turn in reversed(range(len(present)))}

    def choose(index: np.ndarray) -> Cond:
        rounds, turn = np.divmod(np.asarray(index), len(present))
        taken = [own[t][r % len(own[t])] for t, r in zip(turn, rounds, strict=True)]
        return {**condition.choose(present[turn]), "hint": pictures[taken].astype(np.float32) / 255}

    def parse(words: str) -> Cond:
        turn = turns().get(_bytes(condition, condition.parse(words)))
        if turn is None:
            raise ValueError(f"there is no picture of {words!r} among the {len(pictures)} at hand")
        return choose(np.array([turn]))

    spec = {**condition.spec, "hint": jax.ShapeDtypeStruct(pictures.shape[1:], jnp.float32)}
    names = condition.names if len(present) == condition.choices else ()  # turns of some have others' names
    return replace(condition, spec=spec, choose=choose, parse=parse, names=names, unasked=(*condition.unasked, "hint"))


def _bytes(condition: Condition, cond: Cond) -> tuple[bytes, ...]:
    """What is equal for equal entries."""
    return tuple(np.asarray(cond[name], spec.dtype).tobytes() for name, spec in condition.spec.items())


def noised(
    condition: Condition, process: Callable[[Array], Level], size: tuple[int, int], *, level: float, max_level: float
) -> Condition:
    """Give the network the hint resized and noised, and the level of that noise, which one may choose.

    Noise conditioning augmentation (Ho et al. 2021, arXiv:2106.15282; Saharia et al. 2022, arXiv:2205.11487): a
    super-resolution model that has seen noised pictures forgives the faults of those that another model has made. Adds
    {"level": float32 [B]}. In place of both the network gets "concat" [B, *size, C], the hint in [-1, 1] by bicubic
    interpolation at that level, and "concat_noise" [B], the level for its embedding.

    Args:
        condition: from `hint`.
        process: noises the hint; its time is in [0, 1], and 0 is clean.
        size: (height, width) of the samples.
        level: time of that process by default.
        max_level: the largest; the network is trained for levels from 0 to it.

    Returns:
        the condition.

    Raises:
        ValueError: there is no hint, or the levels are not 0 <= level <= max_level <= 1.
    """
    if "hint" not in condition.spec:
        raise ValueError(f"what is noised is the hint, of conditions.hint; the condition has {sorted(condition.spec)}")
    if not 0 <= level <= max_level <= 1:
        raise ValueError(f"levels are 0 <= level <= max_level <= 1, got level {level:g} and max_level {max_level:g}")

    def with_level(cond: Cond) -> Cond:
        return {**cond, "level": np.full(len(cond["hint"]), level, np.float32)}

    def augment(key: Array, cond: Cond) -> Cond:
        rest = {name: value for name, value in cond.items() if name not in ("hint", "level")}
        large = 2 * bicubic(jnp.asarray(cond["hint"]), size) - 1
        concat = q_sample(large, normal_like(key, large), process(cond["level"]))
        return {**rest, "concat": concat, "concat_noise": _NOISE * cond["level"]}

    return replace(
        condition,
        spec={**condition.spec, "level": jax.ShapeDtypeStruct((), jnp.float32)},
        choose=lambda index: with_level(condition.choose(index)),
        parse=lambda words: with_level(condition.parse(words)),
        unasked=(*condition.unasked, "level"),
        bounds={**condition.bounds, "level": (0.0, max_level)},
        augment=augment,
    )
