"""Shared by grids: a number of steps that may be traced, and equal steps between two numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import is_traced

__all__ = ["check_decreasing", "check_steps", "is_static", "ramp"]


def is_static(n: int | Array) -> bool:
    """Whether a number of steps is an integer and not an array."""
    return isinstance(n, int | np.integer)


def check_steps(n: int | Array, max_steps: int | None) -> int:
    """The static number of steps in a grid's shape: max_steps, or n.

    Raises:
        ValueError: n is not an integer, lies outside 1..max_steps, or is an array without max_steps.
    """
    if max_steps is not None and (not is_static(max_steps) or max_steps < 1):
        raise ValueError(f"max_steps, the largest number of steps, is an integer of at least 1, got {max_steps!r:.80}")
    dtype = getattr(n, "dtype", None)
    integer = is_static(n) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer) and jnp.ndim(n) == 0)
    traced = is_traced(n)
    if not integer or (not traced and n < 1):
        raise ValueError(f"a grid has an integer number of steps, at least one step, got n = {n!r:.80}")
    if max_steps is None and not is_static(n):
        raise ValueError("a number of steps that is an array needs max_steps, the largest that it takes")
    if max_steps is not None and not traced and n > max_steps:
        raise ValueError(f"n must lie in 1..max_steps = {max_steps}, got n = {n}")
    return int(n) if max_steps is None else max_steps


def check_decreasing(high_name: str, high, low_name: str, low, *, positive: bool = False) -> None:
    """Raise ValueError unless low < high, and 0 < low if `positive`; traced ends pass."""
    if is_traced(high, low):
        return
    if not low < high or (positive and not low > 0):
        bound = f"0 < {low_name} < {high_name}" if positive else f"{low_name} < {high_name}"
        raise ValueError(f"a grid goes from more noise to less, {bound}; got {high_name} = {high}, {low_name} = {low}")


def ramp(start: float | Array, end: float | Array, steps: int | Array, size: int) -> Array:
    """Equal steps from start to end, then end repeated, [size + 1]; jnp.linspace if steps = size."""
    start, end = jnp.asarray(start, float), jnp.asarray(end, float)
    if is_static(steps) and steps == size:
        return jnp.linspace(start, end, size + 1)  # exact at both ends; only the start if there is no step
    i, steps = jnp.arange(size + 1), jnp.asarray(steps)
    share = jnp.minimum(i, steps).astype(start.dtype) / jnp.maximum(steps, 1).astype(start.dtype)
    return jnp.where((i >= steps) & (steps > 0), end, start * (1 - share) + end * share)
