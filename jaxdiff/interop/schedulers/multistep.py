"""Linear multistep methods with tables of coefficients for each step of a scheduler's list.

Exponential integrators are linear in x, in the network's predictions and in the noise, and their coefficients depend
only on the list of levels. So the coefficients are computed in advance, in float64, including the special cases of the
first and last steps, and one solver implements all schedulers.
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
        t: [N + 1].
        alpha: [N + 1].
        sigma: [N + 1].
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def N(self) -> int:
        """Number of steps."""
        return len(self.t) - 1

    @property
    def lam(self) -> np.ndarray:
        """log(alpha / sigma), inf at clean data."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def levels(self) -> Level:
        """Return the list as a grid."""
        return Level(*(jnp.asarray(field, jnp.result_type(float)) for field in self))


class Step(NamedTuple):
    """Coefficients of one step: x' = keep x + sum of weights and predictions + noise z.

    Attributes:
        keep: coefficient of x at the beginning of the last step with `fresh`.
        weights: coefficients of the predictions, newest first.
        noise: coefficient of standard normal noise.
        fresh: whether the step begins at the current x; False: at an earlier one.
        correction: coefficients of the predictions, newest first, in a term that is added to x before the step.
    """

    keep: float
    weights: np.ndarray
    noise: float = 0.0
    fresh: bool = True
    correction: np.ndarray = np.zeros(0)


class _State(NamedTuple):
    table: Array  # [N, depth + 1, ...], by step and by the number of steps before it
    fresh: Array  # [N, depth + 1]
    alpha: Array  # [N], where steps begin
    sigma: Array
    past: Array  # predictions, [depth, ...], newest first
    taken: Array  # steps
    begun: Array  # x at the last fresh step; empty if all steps are fresh


def multistep(
    points: Points, step_of: Callable[[int, int], Step], *, depth: int, of_noise: bool, stochastic: bool = False
) -> Solver:
    """Return the solver of a table of steps.

    Args:
        points: the list.
        step_of: (index of a step, number of steps before it, at most `depth`) -> its coefficients.
        depth: maximal number of earlier predictions in a step.
        of_noise: whether predictions are eps_hat, not x0_hat.
        stochastic: whether steps add noise.

    Returns:
        a solver for this list or a part of it only, since it finds a step's coefficients by the level where it begins.

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
    return Solver(init, step, stochastic=stochastic, decreasing=False)


@cache  # one function for all tables, so that lists share compiled programs
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
    """Return keep, noise, weights and correction, [N, depth + 1, 2 + 2 (depth + 1)], and which steps are fresh."""
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
