"""Shared by adaptive solvers: in each interval of the grid, step sizes per example, controlled by the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import append_axes

__all__ = ["AdaptiveState", "Attempt", "Progress", "check_adaptive", "init_adaptive", "per_example", "walk"]


class AdaptiveState(NamedTuple):
    """State of an adaptive solver, for each example.

    Attributes:
        nfe: [B] int32, evaluations of the denoiser so far.
        step: [B], size of the next attempt, 0 before the first: a length in the plane of alpha and sigma (`rk45`,
            `rk23`), or in lam (`dpm_adaptive`).
        failed: [B], whether the tolerance was missed in some interval, after `max_steps` attempts.
    """

    nfe: Array
    step: Array
    failed: Array


class Progress(NamedTuple):
    """Each example's progress through an interval.

    Attributes:
        x: [B, ...].
        left: [B], the remaining part of the interval, 0 at its end.
        step: [B], size of the next attempt.
        tries: [B] int32, number of attempts.
        failed: [B].
        memory: the method's state, [B, ...] arrays.
    """

    x: Array
    left: Array
    step: Array
    tries: Array
    failed: Array
    memory: Any


class Attempt(NamedTuple):
    """An attempted step: its end, whether its error is within the tolerance, the next step size, the new memory."""

    x: Array
    good: Array
    step: Array
    memory: Any


def walk(attempt: Callable[[Progress, Array, Array], Attempt], start: Progress, max_steps: int) -> Progress:
    """Attempt steps until all examples are at the end of the interval; those at the end stay unchanged.

    Args:
        attempt: (progress, h [B], last [B]) -> attempted step of size h, accepted where it is good or the last.
        start: progress before the first attempt.
        max_steps: largest number of attempts per example. The last one covers the rest in one step, whatever its error.
    """
    tiny = 10 * jnp.finfo(start.x.dtype).eps

    def body(walk: Progress) -> Progress:
        last = (walk.tries == max_steps - 1) | (walk.step < tiny * walk.left)  # smaller steps are lost in rounding
        h = jnp.where(last, walk.left, jnp.minimum(walk.step, walk.left))
        tried = attempt(walk, h, last)
        taken = tried.good | last
        new = Progress(
            x=jnp.where(per_example(taken, walk.x), tried.x, walk.x),
            left=jnp.where(taken, walk.left - h, walk.left),
            step=tried.step,
            tries=walk.tries + 1,
            failed=walk.failed | (last & ~tried.good),
            memory=tried.memory,
        )
        return jax.tree.map(lambda new, old: jnp.where(per_example(walk.left > 0, new), new, old), new, walk)

    return jax.lax.while_loop(lambda walk: jnp.any(walk.left > 0), body, start)


def init_adaptive(x: Array) -> AdaptiveState:
    """The initial state of an adaptive solver."""
    batch = x.shape[:1]
    return AdaptiveState(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, x.dtype), jnp.zeros(batch, bool))


def check_adaptive(rtol: float | Array, atol: float | Array, max_steps: int) -> None:
    """Raise ValueError if a tolerance is a number and not positive, or max_steps < 1."""
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if isinstance(tolerance, (int, float)) and not tolerance > 0:
            raise ValueError(f"{name} must be positive, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def per_example(each: Array, x: Array) -> Array:
    """One value per example, [B], with axes appended to broadcast against x."""
    return append_axes(each, x.ndim)
