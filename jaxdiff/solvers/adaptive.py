"""What adaptive solvers share: within an interval of the grid, steps whose size each example chooses by its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["AdaptiveState", "Attempt", "Progress", "check_adaptive", "init_adaptive", "per_example", "walk"]


class AdaptiveState(NamedTuple):
    """What an adaptive solver remembers and reports, for each example.

    Attributes:
        nfe: [B] int32, evaluations of the denoiser so far.
        step: [B], the step to try next, 0 before the first: a length in the plane of alpha and sigma (`rk45`, `rk23`),
            or in lam (`dpm_adaptive`).
        failed: [B], whether some interval was ended without reaching the tolerance, after `max_steps`.
    """

    nfe: Array
    step: Array
    failed: Array


class Progress(NamedTuple):
    """Where each example is on its way through an interval.

    Attributes:
        x: [B, ...].
        left: [B], how much of the interval is left, 0 at its end.
        step: [B], the step to try next.
        tries: [B] int32.
        failed: [B].
        memory: what the method keeps, [B, ...] arrays.
    """

    x: Array
    left: Array
    step: Array
    tries: Array
    failed: Array
    memory: Any


class Attempt(NamedTuple):
    """One step that was tried: where it leads, whether its error is tolerated, the next step, the memory after it."""

    x: Array
    good: Array
    step: Array
    memory: Any


def walk(attempt: Callable[[Progress, Array, Array], Attempt], start: Progress, max_steps: int) -> Progress:
    """Try steps until no example has some way left; those that have arrived stay as they are.

    Args:
        attempt: (walk, h [B], last [B]) -> the try of a step h, which is taken where it is good or the last.
        start: the walk before the first try.
        max_steps: tries that an example has. The last takes what is left in one step, whatever its error.
    """
    tiny = 10 * jnp.finfo(start.x.dtype).eps

    def body(walk: Progress) -> Progress:
        last = (walk.tries == max_steps - 1) | (walk.step < tiny * walk.left)  # a step of rounding's size goes nowhere
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
    """The `init` of an adaptive solver."""
    batch = x.shape[:1]
    return AdaptiveState(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, x.dtype), jnp.zeros(batch, bool))


def check_adaptive(rtol: float | Array, atol: float | Array, max_steps: int) -> None:
    """Raise ValueError where a tolerance is a number and not positive, or max_steps < 1."""
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if isinstance(tolerance, (int, float)) and not tolerance > 0:
            raise ValueError(f"{name} must be positive, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def per_example(each: Array, x: Array) -> Array:
    """One value an example, [B], with axes appended to meet x."""
    return each.reshape(each.shape + (1,) * (x.ndim - 1))
