"""Schedulers without a table: for flow matching, and for EDM."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import parameterize, solvers
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.config import Scheduler
from jaxdiff.interop.schedulers.timesteps import check, karras, levels, shifted, sigma_schedule
from jaxdiff.levels import Level, from_x0
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import Prediction, Scalings
from jaxdiff.processes import EDM, Flow
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import init_empty

__all__ = ["dynamic_shift", "edm_euler", "edm_sigmas", "flow_euler", "flow_heun", "flow_lcm", "flow_map"]


def flow_euler(c: Fields, tokens: int | None, uniform_steps: bool) -> Scheduler:
    """FlowMatchEulerDiscreteScheduler; see `scheduler` for the arguments."""
    return _shifted_flow(c, tokens, uniform_steps, renoising=c.get("stochastic_sampling", False))


def flow_lcm(c: Fields, tokens: int | None, uniform_steps: bool) -> Scheduler:
    """FlowMatchLCMScheduler, at one resolution: a consistency model on a flow's times."""
    c.expect("scale_factors", None, [])
    return _shifted_flow(c, tokens, uniform_steps, renoising=True)


def _shifted_flow(c: Fields, tokens: int | None, uniform_steps: bool, *, renoising: bool) -> Scheduler:
    T, shift, dynamic = c.get("num_train_timesteps", 1000), c.get("shift", 1.0), c.get("use_dynamic_shifting", False)
    schedule_type, end = config.schedule_type(c), c.get("shift_terminal", None)
    low, high, inverted = c.get("sigma_min", None), c.get("sigma_max", None), c.get("invert_sigmas", False)
    # The list's last time is shifted twice, as in the reference.
    last = 1 / T if dynamic else shifted(1 / T, shift)
    shift = dynamic_shift(c, tokens, "exponential", "linear") if dynamic else shift

    def list_of(n: int) -> np.ndarray:
        s = shifted(np.linspace(1, 1 / n if uniform_steps else last, n), shift)
        if end and n == 1:
            raise ValueError(f"{c.kind}: shift_terminal is of the last of at least 2 times, got 1 step")
        if end:
            s = 1 - (1 - s) * (1 - end) / (1 - s[-1])
        return sigma_schedule(schedule_type, n, high or s[0], low or s[-1]) if schedule_type else s

    solver = _renoising(inverted) if renoising else solvers.euler()
    return _flow(T, list_of, solver, inverted=inverted)


def dynamic_shift(c: Fields, tokens: int | None, *kinds: str) -> float:
    """Return the shift for an image of a number of tokens, by a `time_shift_type` of `kinds`."""
    low, high = c.get("base_shift", 0.5), c.get("max_shift", 1.15)
    few, many = c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096)
    if tokens is None:
        raise ValueError(f"{c.kind} with use_dynamic_shifting needs tokens, the number of an image's tokens")
    if few >= many:
        raise ValueError(f"{c.kind}: base_image_seq_len must be less than max_image_seq_len, got {few} and {many}")
    mu = low + (high - low) * (tokens - few) / (many - few)
    if not abs(mu) < 100:
        raise ValueError(f"{c.kind}: base_shift and max_shift make a shift of exp({mu:.3g}) for {tokens} tokens")
    return exp(mu) if c.expect("time_shift_type", *kinds) == "exponential" else mu


def _renoising(inverted: bool) -> Solver:
    """Predict the end without noise, and add noise again; with inverted times, the reference keeps the other end."""

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        z = normal_like(key, x)
        return nxt.sigma * eps + nxt.alpha * z if inverted else nxt.alpha * x0 + nxt.sigma * z, state

    return Solver(init_empty, step, order=None, stochastic=True)


def flow_heun(c: Fields) -> Scheduler:
    """FlowMatchHeunDiscreteScheduler."""
    T, shift = c.get("num_train_timesteps", 1000), c.get("shift", 1.0)
    return _flow(T, lambda n: shifted(np.linspace(1, shifted(1 / T, shift), n), shift), solvers.heun())


def flow_map(c: Fields) -> Scheduler:
    """FlowMapEulerDiscreteScheduler: a network of mean velocities, which is given both ends of a step.

    The time at the end, like that at the start times `num_train_timesteps`, is its cond["next_noise"].
    """
    T, shift = c.get("num_train_timesteps", 1000), c.get("shift", 1.0)
    return _flow(T, lambda n: shifted(np.linspace(1, 0, n + 1)[:-1], shift), solvers.flow_map())


def _flow(T: int, list_of: Callable[[int], np.ndarray], solver: Solver, *, inverted: bool = False) -> Scheduler:
    """Build a flow's scheduler; if inverted, times go from noise to data, and the prediction is x_0 - eps."""

    def grid(n: int) -> Level:
        check(n, None)
        s = np.append(list_of(n), 0)
        return levels(s, 1 - s, s)

    prediction = parameterize.with_noise_input(
        parameterize.velocity, lambda level: T * (level.alpha if inverted else level.t)
    )
    any_way = config.always(solver._replace(decreasing=False))
    return config.build(Flow(), _negated(prediction) if inverted else prediction, grid, any_way, std=config.ones)


def _negated(prediction: Prediction) -> Prediction:
    def negated(level: Level) -> Scalings:
        s = prediction(level)
        return s._replace(out=-s.out)

    return negated


def edm_euler(c: Fields) -> Scheduler:
    """EDMEulerScheduler."""
    sigmas, (_, high) = edm_sigmas(c)
    predicted = c.expect("prediction_type", "epsilon", "v_prediction")
    to_clean = c.expect("final_sigmas_type", "zero", "sigma_min") == "zero"
    c.ignore("num_train_timesteps")
    prediction = parameterize.edm(c.get("sigma_data", 0.5))

    def grid(n: int) -> Level:
        check(n, None)
        s = sigmas(n)
        s = np.append(s, 0 if to_clean else s[-1])
        return levels(s, np.ones_like(s), s)

    def std(levels: Level) -> Array:
        return jnp.asarray(np.hypot(1, high), levels.sigma.dtype)

    solver = solvers.euler()._replace(decreasing=False)
    prediction = prediction if predicted == "epsilon" else _negated(prediction)
    return config.build(EDM(), prediction, grid, config.always(solver), std=std)


def edm_sigmas(c: Fields) -> tuple[Callable[[int], np.ndarray], tuple[float, float]]:
    """Return a function from N to N decreasing values of sigma, and (the lowest, the highest)."""
    low, high, rho = c.get("sigma_min", 0.002), c.get("sigma_max", 80.0), c.get("rho", 7.0)
    exponential = c.expect("sigma_schedule", "karras", "exponential") == "exponential"

    def sigmas(n: int) -> np.ndarray:
        return np.exp(np.linspace(np.log(low), np.log(high), n))[::-1] if exponential else karras(n, high, low, rho)

    return sigmas, (low, high)
