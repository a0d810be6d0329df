"""A pipeline's parts with what steers it: pictures and scales are entries of its condition, as samplers take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import append_axes
from jaxdiff.text_to_image.control import HintShape, apply_at, check_hints, encode_hints, hint_shape
from jaxdiff.text_to_image.parts import NEGATIVE, Parts
from jaxdiff.text_to_image.prompts import Cond
from jaxdiff.types import Params

__all__ = ["hint_cond", "hint_shapes", "steered"]

SCALES = "control_scale"  # of an encoded condition, [B] of each control


def hint_shapes(parts: Parts) -> dict[str, HintShape]:
    """The shape of one picture of each control, by its name; see `Pipeline.hint_shapes`."""
    return {name: hint_shape(parts.models, name, parts.size) for name in parts.controls}


def hint_cond(names: Sequence[str], hints: Sequence[Any], scales: Sequence[float]) -> Cond:
    """Entries of the condition of `steered` parts.

    Args:
        names: of the controls.
        hints: a picture of each, the embedding of a face, or that and more in a dict, without a leading axis.
        scales: of each; 0 is off.

    Returns:
        the entries of one example, leaves [1, ...].
    """
    example = lambda a: np.asarray(a, np.float32)[None]  # noqa: E731
    cond: Cond = {f"{name}.hint": jax.tree.map(example, hint) for name, hint in zip(names, hints, strict=True)}
    return cond | {f"{name}.scale": np.full(1, scale, np.float32) for name, scale in zip(names, scales, strict=True)}


def steered(parts: Parts) -> Parts:
    """Put what steers a pipeline into its model and its condition.

    Args:
        parts: of a pipeline with controls.

    Returns:
        the parts, whose condition takes the entries of `hint_cond`, too; as they are without controls.
    """
    if not parts.controls:
        return parts
    names, plain, network = parts.controls, parts.condition, parts.layout.network
    entries = {f"{name}.{what}" for name in names for what in ("hint", "scale")}

    def encode(params: Params, cond: Cond) -> Cond:
        hints, scales = ([cond[f"{name}.{what}"] for name in names] for what in ("hint", "scale"))
        check_hints(parts.models, names, hints, (len(scales[0]), *parts.size))
        given, null = encode_hints(parts.models, params, names, hints)
        if NEGATIVE in cond:
            given = {name: _chosen(cond[NEGATIVE], null[name], given[name]) for name in given}
        asked = {name: value for name, value in cond.items() if name not in entries}
        return plain.encode(params, asked) | given | {SCALES: tuple(scales)}

    def apply(params: Params, x: Array, noise: Array, cond: Mapping[str, Any], **options: Any) -> Array:
        rest = {name: value for name, value in cond.items() if name != SCALES}
        return apply_at(parts.models, network, names, cond[SCALES])(params, x, noise, rest, **options)

    return parts._replace(model=replace(parts.model, apply=apply), condition=replace(plain, encode=encode))


def _chosen(which: Array, first: Any, second: Any) -> Any:
    """The first for examples where `which` is true; as they are where both are the same."""
    if first is second:
        return first
    return jax.tree.map(lambda a, b: jnp.where(append_axes(which, a.ndim), a, b), first, second)
