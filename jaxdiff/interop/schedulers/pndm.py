"""Schedulers of pseudo numerical methods: PNDM with its PLMS, and iPNDM."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import parameterize
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.config import Scheduler
from jaxdiff.interop.schedulers.timesteps import check, end_of, levels, lookup, of_table, times
from jaxdiff.levels import Level, from_x0
from jaxdiff.parameterize import Prediction
from jaxdiff.processes import Cosine
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import prepend

__all__ = ["ipndm", "pndm"]

# Adams and Bashforth's weights of the newest and older values, orders 1 to 4.
ADAMS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24
RK = np.array([1, 2, 2, 1]) / 6


class _State(NamedTuple):
    called: Array  # number of calls of the network
    past: Array  # [3, ...], predictions of completed steps, newest first
    mean: Array  # weighted sum of the predictions in a Runge-Kutta step so far
    begun: Array  # x at the beginning of a step of several calls


def pndm(c: Fields) -> Scheduler:
    """PNDMScheduler. A step of the grid is one call of the network, as in the reference's list with repeated times.

    The formulas depend on the number of calls, not on the step of the grid: if sampling begins in the middle, the first
    calls' formulas are used at later times. The solver combines the network's outputs, in steps of T // N.
    """
    table, prediction = config.table(c), config.prediction(c, "epsilon", "v_prediction")
    T, plms = c.get("num_train_timesteps", 1000), c.get("skip_prk_steps", False)
    spacing, offset = config.whole_spacing(c)
    end = end_of(table, c.get("set_alpha_to_one", False))

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the times of all calls, and of the twelve calls of the Runge-Kutta steps."""
        check(n, None)
        t = np.round(times(T, n, spacing, offset)).astype(int)
        if plms:
            return np.concatenate([t[:1], t[1:2], t[1:]]), np.zeros(12, int)
        if len(t) < 4:
            raise ValueError(f"PNDMScheduler begins with three Runge-Kutta steps: at least 4 steps, got {n}")
        half = T // n // 2
        with_middle = np.repeat(t[:4], 2) + np.tile([half, 0], 4)  # each with its middle before it
        rk = np.repeat(with_middle[1:], 2)[1:-1]
        return np.concatenate([rk, t[3:]]), rk

    def grid(n: int) -> Level:
        t = list_of(n)[0]
        if max(t) >= table.T:
            raise ValueError(f"{n} steps and steps_offset {offset} begin at {max(t)}, beyond {table.T} times")
        return of_table(table, t, end)

    def solver(n: int) -> Solver:
        at, stride, begins = lookup(table, end), T // n, list_of(n)[1][::4].astype(np.int32)

        def reach(called: Array, t: Array) -> tuple[Array, Array]:
            """Return the times between which the formula of a call goes."""
            if plms:
                again = called == 1
                return jnp.where(again, t + stride, t), jnp.where(again, t, t - stride)
            middle = jnp.where(called % 2 == 0, stride // 2, 0)
            starting = called < 12
            begin = jnp.asarray(begins)[jnp.minimum(called // 4, 2)]
            return jnp.where(starting, begin, t), jnp.where(starting, t - middle, t - stride)

        def step(denoise, key: Array, x: Array, state: _State, cur: Level, nxt: Level):
            F = _network_output(prediction, denoise(x, cur), x, cur)
            begin_time, end_time = reach(state.called, jnp.round(cur.t).astype(jnp.int32) - 1)
            first, last = at(jnp.where(begin_time < 0, begin_time + table.T, begin_time)), at(end_time)
            mixed, x, state = (_plms if plms else _runge_kutta)(F, x, state)
            return _move(prediction, mixed, x, first, last), state

        return Solver(_init, step, decreasing=False)

    return config.build(table, prediction, grid, solver)


def _init(x: Array) -> _State:
    return _State(jnp.zeros((), jnp.int32), jnp.zeros((3, *x.shape), x.dtype), jnp.zeros_like(x), jnp.zeros_like(x))


def _adams(F: Array, past: Array, order: Array) -> Array:
    w = jnp.asarray(ADAMS, F.dtype)[order - 1]
    return w[0] * F + jnp.tensordot(w[1:], past, 1, precision="highest")


def _plms(F: Array, x: Array, state: _State) -> tuple[Array, Array, _State]:
    """Return the prediction in a call's formula, the x from which it starts, and the new state."""
    again = state.called == 1  # repeats the first step with the mean of the predictions at both ends
    order = jnp.clip(state.called, 1, 4)
    mixed = jnp.where(again, 0.5 * (F + state.past[0]), _adams(F, state.past, order))
    past = jnp.where(again, state.past, prepend(state.past, F))
    begun = jnp.where(state.called == 0, x, state.begun)
    return mixed, jnp.where(again, begun, x), _State(state.called + 1, past, state.mean, begun)


def _runge_kutta(F: Array, x: Array, state: _State) -> tuple[Array, Array, _State]:
    stage = state.called % 4
    starting, begins = state.called < 12, stage == 0
    mean = jnp.where(begins, 0, state.mean) + jnp.asarray(RK, F.dtype)[stage] * F
    begun = jnp.where(begins, x, state.begun)
    mixed = jnp.where(starting, jnp.where(stage == 3, mean, F), _adams(F, state.past, jnp.asarray(4)))
    past = jnp.where(starting & ~begins, state.past, prepend(state.past, F))
    return mixed, jnp.where(starting, begun, x), _State(state.called + 1, past, mean, begun)


def _network_output(prediction: Prediction, x0: Array, x: Array, level: Level) -> Array:
    """Recover the network's output from x_0."""
    s = prediction(level)
    return (x0 - s.skip.astype(x.dtype) * x) / s.out.astype(x.dtype)


def _move(prediction: Prediction, F: Array, x: Array, cur: Level, nxt: Level) -> Array:
    """Apply DDIM's formula."""
    cur, nxt = (Level(*(field.astype(x.dtype) for field in level)) for level in (cur, nxt))
    s = prediction(cur)
    x0, eps = from_x0(s.skip * x + s.out * F, x, cur)
    return nxt.alpha * x0 + nxt.sigma * eps


def ipndm(c: Fields) -> Scheduler:
    """IPNDMScheduler: eps of a network that predicts v, orders 1 to 4; from pure noise x_0 is taken to be 0."""
    betas = c.get("trained_betas", None)
    c.ignore("num_train_timesteps")

    def grid(n: int) -> Level:
        check(n, None)
        sigma = np.sin(np.linspace(1, 0, n + 1) * np.pi / 2) ** 2 if betas is None else np.asarray(betas)
        alpha = np.sqrt(1 - sigma**2)
        return levels(np.arctan2(sigma, alpha) / np.pi * 2, alpha, sigma)

    def step(denoise, key: Array, x: Array, state: _State, cur: Level, nxt: Level):
        eps = from_x0(denoise(x, cur), x, cur).eps
        mixed = _adams(eps, state.past, jnp.minimum(state.called + 1, 4))
        x0 = (x - cur.sigma * mixed) / jnp.maximum(cur.alpha, 1e-8)
        return nxt.alpha * x0 + nxt.sigma * mixed, state._replace(
            called=state.called + 1, past=prepend(state.past, eps)
        )

    solver = Solver(_init, step, order=2, decreasing=False)
    return config.build(Cosine(), parameterize.v, grid, config.always(solver))
