"""Runge-Kutta methods on the line between two levels: the classical method, and adaptive pairs.

On the line alpha and sigma are linear in w in [0, 1], and the probability-flow ODE is dx/dw = D dalpha + E dsigma with
the denoiser D, its noise E = (x - alpha D) / sigma, and constant dalpha, dsigma. It is finite at alpha = 0, but not at
sigma = 0: the step to clean data is Euler's, which returns x0_hat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0
from jaxdiff.processes import Process
from jaxdiff.solvers.adaptive import AdaptiveState, Attempt, Progress, check_adaptive, init_adaptive, per_example, walk
from jaxdiff.solvers.base import Solver, init_empty, lerp, select_level, with_process
from jaxdiff.types import Denoiser

__all__ = ["rk4", "rk23", "rk45"]


@factory
def rk4(process: Process | None = None) -> Solver:
    """The classical Runge-Kutta method on the probability-flow ODE along the line between two levels.

    Args:
        process: gives the time of the midpoint. Without it that time is interpolated: exact for EDM and Flow, and where
            the network's noise input is lam; elsewhere it is off by O(h^2), and the order is 2.

    Returns:
        a solver of order 4 with four evaluations per step; the step to sigma = 0 is Euler's.
    """

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        not_last = nxt.sigma > 0
        end = select_level(not_last, cur, nxt)
        mid = lerp(cur, nxt, 0.5)
        inner = with_process(denoise, process)
        k1 = _slope(denoise, x, cur, cur, nxt)
        k2 = _slope(inner, x + 0.5 * k1, mid, cur, nxt)
        k3 = _slope(inner, x + 0.5 * k2, mid, cur, nxt)
        k4 = _slope(denoise, x + k3, end, cur, nxt)
        return x + jnp.where(not_last, (k1 + 2 * k2 + 2 * k3 + k4) / 6, k1), state

    return Solver(init_empty, step, order=4, nfe=4)


def _slope(denoise: Callable, x: Array, level: Level, cur: Level, nxt: Level) -> Array:
    """dx/dw = D dalpha + E dsigma at a level of the line from `cur` to `nxt`."""
    x0, eps = from_x0(denoise(x, level), x, level)
    return (nxt.alpha - cur.alpha) * x0 + (nxt.sigma - cur.sigma) * eps


class _ButcherTableau(NamedTuple):
    """An embedded pair of Runge-Kutta methods, whose last evaluation is the first of the next step.

    Attributes:
        c: [S], nodes.
        a: [S, S], matrix; its last row is the step.
        error: [S], weights of the error estimate.
        order: order of the lower method plus one.
    """

    c: np.ndarray
    a: np.ndarray
    error: np.ndarray
    order: int


_DORMAND_PRINCE = _ButcherTableau(
    np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]),
    np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [1 / 5, 0, 0, 0, 0, 0, 0],
            [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
            [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
            [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
        ]
    ),
    np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]),
    5,
)
_BOGACKI_SHAMPINE = _ButcherTableau(
    np.array([0, 1 / 2, 3 / 4, 1]),
    np.array([[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 3 / 4, 0, 0], [2 / 9, 1 / 3, 4 / 9, 0]]),
    np.array([-5 / 72, 1 / 12, 1 / 9, -1 / 8]),
    3,
)


@factory
def rk45(
    rtol: float | Array = 1e-5, atol: float | Array = 1e-5, process: Process | None = None, *, max_steps: int = 1000
) -> Solver:
    """Dormand and Prince's pair of orders 5 and 4, with a step size per example that is controlled by the error.

    A black-box solver of the probability-flow ODE, as in Song et al. 2020 (arXiv:2011.13456). The usual grid has one
    interval to the lowest sigma and one to clean data. `sample_state` also returns the number of evaluations, in the
    state's `nfe`. Steps do not depend on other examples; the batch is evaluated until all have ended. Differentiable in
    forward mode only, since the number of steps is not static.

    Args:
        rtol: tolerance of a step's error (root mean square over an example), relative to |x|; > 0, may be traced.
        atol: absolute tolerance, added to the relative one; > 0, may be traced.
        process: gives the times of inner levels, as for `rk4`. Pass it unless the network receives the time of EDM or
            Flow: over a long interval the error of interpolated times is large, and not part of the error estimate.
        max_steps: largest number of attempts per example in an interval. The last one covers the rest in one step,
            whatever its error, so that sampling ends, and sets the state's `failed`.

    Returns:
        a solver whose error is set by the tolerance; six evaluations per attempt, and one more in each interval. The
        step to sigma = 0 is Euler's, which returns x0_hat.

    Raises:
        ValueError: a tolerance that is a number and not positive; max_steps < 1.
    """
    return _adaptive(_DORMAND_PRINCE, rtol, atol, process, max_steps)


@factory
def rk23(
    rtol: float | Array = 1e-3, atol: float | Array = 1e-3, process: Process | None = None, *, max_steps: int = 1000
) -> Solver:
    """`rk45` with Bogacki and Shampine's pair of orders 3 and 2: fewer evaluations for loose tolerances.

    Args:
        rtol, atol, process, max_steps: as for `rk45`.

    Returns:
        a solver whose error is set by the tolerance; three evaluations per attempt, and one more in each interval.

    Raises:
        ValueError: as for `rk45`.
    """
    return _adaptive(_BOGACKI_SHAMPINE, rtol, atol, process, max_steps)


def _adaptive(pair: _ButcherTableau, rtol, atol, process: Process | None, max_steps: int) -> Solver:
    check_adaptive(rtol, atol, max_steps)

    def step(denoise: Denoiser, key: Array, x: Array, state: AdaptiveState, cur: Level, nxt: Level):
        not_last = nxt.sigma > 0
        # There is no attempt to clean data; a safe level keeps the unused branch finite.
        end = select_level(not_last, cur, nxt)
        slope = _slope(denoise, x, cur, cur, nxt)
        inner = with_process(denoise, process)

        def stages(x: Array, left: Array, slope: Array, h: Array) -> Array:
            """The slopes at each stage, [S, B, ...]."""

            def stage(k: Array, i_c_a):
                i, c, a = i_c_a
                w = left - c * h  # from the clean end, where sigma may be much smaller than cur's
                y = x + per_example(h, x) * jnp.tensordot(a, k, 1, precision="highest")
                return k.at[i].set(_slope(inner, y, lerp(end, cur, w), cur, nxt)), None

            tableau = (np.arange(1, len(pair.c)), *(jnp.asarray(field[1:], x.dtype) for field in (pair.c, pair.a)))
            first = jnp.zeros((len(pair.c), *x.shape), x.dtype).at[0].set(slope)
            return jax.lax.scan(stage, first, tableau)[0]

        def attempt(walk: Progress, h: Array, last: Array) -> Attempt:
            slope, rejected = walk.memory
            k = stages(walk.x, walk.left, slope, h)
            moved, square = _moved(pair, walk.x, h, k, rtol=rtol, atol=atol)
            # Hairer, Norsett and Wanner 1993, II.4: 0.9 error^(-1/order) in [0.2, 10], no growth after a rejection.
            grow = 0.9 * jnp.maximum(square, 1e-30) ** (-0.5 / pair.order)
            grow, good = jnp.clip(grow, 0.2, jnp.where(rejected, 1.0, 10.0)), square < 1
            slope = jnp.where(per_example(good | last, slope), k[-1], slope)
            return Attempt(moved, good, grow * h, (slope, ~(good | last)))

        length = jnp.hypot(nxt.alpha - cur.alpha, nxt.sigma - cur.sigma)
        start = Progress(
            x,
            left=jnp.where(not_last, jnp.ones_like(state.step), 0),  # as a share of the line
            step=jnp.where(state.step > 0, jnp.minimum(state.step / length, 1), 1),
            tries=jnp.zeros_like(state.nfe),
            failed=state.failed,
            memory=(slope, jnp.zeros_like(state.failed)),  # at x; whether the last try was rejected
        )
        end_of_walk = walk(attempt, start, max_steps)
        nfe = state.nfe + 1 + (len(pair.c) - 1) * end_of_walk.tries
        state = AdaptiveState(nfe, length * end_of_walk.step, end_of_walk.failed)
        return jnp.where(not_last, end_of_walk.x, x + slope), state

    return Solver(init_adaptive, step, order=None, nfe=None)


def _moved(pair: _ButcherTableau, x: Array, h: Array, k: Array, *, rtol, atol) -> tuple[Array, Array]:
    """x after a step h with slopes k, and its squared error [B] in units of the tolerance."""
    step, error = (jnp.asarray(weights, h.dtype) for weights in (pair.a[-1], pair.error))
    moved = x + per_example(h, x) * jnp.tensordot(step, k, 1, precision="highest")
    estimate = per_example(h, x) * jnp.tensordot(error, k, 1, precision="highest")
    scale = jnp.asarray(atol, h.dtype) + jnp.asarray(rtol, h.dtype) * jnp.maximum(jnp.abs(x), jnp.abs(moved))
    square = jnp.mean(jnp.square(estimate / scale), axis=tuple(range(1, x.ndim)))
    return moved, jnp.where(jnp.isfinite(square), square, jnp.inf)  # an overflow counts as a large error
