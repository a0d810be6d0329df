"""Linear multistep methods whose coefficients are tables: what a scheduler does in each step of its own list.

Exponential integrators are linear in x, in the network's predictions and in the noise, and their coefficients follow
from the list of levels alone. So they are computed before, in float64, with all that a scheduler does otherwise in its
first and last steps, and one solver takes the steps of all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import Level, from_x0
from jaxdiff.noise import normal_like
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import prepend

__all__ = ["Points", "Step", "multistep"]


class Points(NamedTuple):
    """A scheduler's list of N steps, in float64.

    Attributes:
        t, alpha, sigma: [N + 1].
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def N(self) -> int:
        """The number of steps."""
        return len(self.t) - 1

    @property
    def lam(self) -> np.ndarray:
        """log(alpha / sigma), inf at clean data."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def levels(self) -> Level:
        """As a grid."""
        return Level(*(jnp.asarray(field, jnp.result_type(float)) for field in self))


class Step(NamedTuple):
    """Coefficients of one step: x' = keep x + sum of weights and predictions + noise z.

    Attributes:
        keep: of x, where the last step with `fresh` began.
        weights: of the predictions, newest first.
        noise: of standard normal noise.
        fresh: False where the step begins at an earlier x than the one it is given.
        correction: weights of the predictions, newest first, in what is added to x before the step.
    """

    keep: float
    weights: np.ndarray
    noise: float = 0.0
    fresh: bool = True
    correction: np.ndarray = np.zeros(0)


class _State(NamedTuple):
    table: Array  # [N, depth + 1, ...], by step and by the number of steps taken before it
    fresh: Array  # [N, depth + 1]
    alpha: Array  # [N], where steps begin
    sigma: Array
    past: Array  # predictions, [depth, ...], newest first
    taken: Array  # steps
    begun: Array  # x of the last fresh step; empty where all are


def multistep(
    points: Points, step_of: Callable[[int, int], Step], *, depth: int, of_noise: bool, stochastic: bool = False
) -> Solver:
    """The solver of a table of steps.

    Args:
        points: the list.
        step_of: (index of the step, steps taken before it, at most `depth`) -> its coefficients.
        depth: number of earlier predictions that a step may combine with its own.
        of_noise: whether predictions are eps_hat, not x0_hat.
        stochastic: whether noise is drawn.

    Returns:
        a solver for this list alone, or a part of it: it knows a step by the level where the step begins.
    Raises:
        ValueError: a step has no finite coefficients.
    """
    table, fresh = _table(points, step_of, depth)
    corrects = bool(table[:, :, 3 + depth :].any())

    def init(x: Array) -> _State:
        alpha, sigma = (jnp.asarray(field[:-1], x.dtype) for field in (points.alpha, points.sigma))
        past, begun = jnp.zeros((depth, *x.shape), x.dtype), jnp.zeros_like(x[:0] if fresh.all() else x)
        taken = jnp.zeros((), jnp.int32)
        return _State(jnp.asarray(table, x.dtype), jnp.asarray(fresh), alpha, sigma, past, taken, begun)

    step = _step(of_noise, stochastic, corrects, anchored=not fresh.all())
    return Solver(init, step, stochastic=stochastic, falling=False)


@cache  # one function for all tables: what is compiled for one list serves others
def _step(of_noise: bool, stochastic: bool, corrects: bool, *, anchored: bool) -> Callable:
    def step(denoise, key: Array, x: Array, state: _State, cur: Level, nxt: Level) -> tuple[Array, _State]:
        depth = len(state.past)
        at = (
            jnp.argmin(jnp.abs(state.alpha - cur.alpha) + jnp.abs(state.sigma - cur.sigma)),
            jnp.minimum(state.taken, depth),
        )
        keep, noise, *rest = state.table[at]
        x0, eps = from_x0(denoise(x, cur), x, cur)
        predicted = [eps if of_noise else x0, *state.past]
        if corrects:
            x = x + sum(w * p for w, p in zip(rest[depth + 1 :], predicted, strict=True))
        begun = jnp.where(state.fresh[at], x, state.begun) if anchored else x
        new = keep * begun + sum(w * p for w, p in zip(rest[: depth + 1], predicted, strict=True))
        if stochastic:
            new = new + noise * normal_like(key, x)
        past = prepend(state.past, predicted[0]) if depth else state.past
        return new, state._replace(past=past, taken=state.taken + 1, begun=begun if anchored else state.begun)

    return step


def _table(points: Points, step_of: Callable[[int, int], Step], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, depth + 1, 2 + 2 (depth + 1)]: keep, noise, weights and correction; and which steps are fresh."""
    table = np.zeros((points.N, depth + 1, 4 + 2 * depth))
    fresh = np.ones((points.N, depth + 1), bool)
    for k in range(points.N):
        for taken in range(min(k, depth) + 1):
            keep, weights, noise, fresh[k, taken], correction = step_of(k, taken)
            prediction = table[k, taken]
            prediction[:2], prediction[2 : 2 + len(weights)] = (keep, noise), weights
            prediction[3 + depth : 3 + depth + len(correction)] = correction
            if not np.all(np.isfinite(prediction)):
                raise ValueError(
                    f"step {k} of {points.N} has no finite coefficients, from alpha, sigma = {points.alpha[k]:.6g}, "
                    f"{points.sigma[k]:.6g} to {points.alpha[k + 1]:.6g}, {points.sigma[k + 1]:.6g}"
                )
    return table, fresh
