"""Schedulers without a table: flow matching's, and EDM's."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import numpy as np

from jaxdiff import parameterize, solvers
from jaxdiff.interop.architecture import Fields
from jaxdiff.interop.schedulers import base
from jaxdiff.interop.schedulers.base import Sampling
from jaxdiff.interop.schedulers.lists import bent, check, karras, levels
from jaxdiff.levels import Level
from jaxdiff.parameterize import Scalings
from jaxdiff.processes import EDM, Flow

__all__ = ["edm_euler", "flow_euler", "flow_heun"]


def flow_euler(c: Fields, tokens: int | None, even: bool) -> Sampling:
    """FlowMatchEulerDiscreteScheduler; see `scheduler` for the arguments."""
    T, shift, dynamic = c.take("num_train_timesteps", 1000), c.take("shift", 1.0), c.take("use_dynamic_shifting", False)
    low, high = c.take("base_shift", 0.5), c.take("max_shift", 1.15)
    few, many = c.take("base_image_seq_len", 256), c.take("max_image_seq_len", 4096)
    kind, curve, end = c.only("time_shift_type", "exponential", "linear"), base.curve(c), c.take("shift_terminal", None)
    c.only("invert_sigmas", False)
    last = 1 / T if dynamic else _shifted(1 / T, shift)
    if dynamic:
        if tokens is None:
            raise ValueError(f"{base.FLOW} with use_dynamic_shifting needs tokens, the number of an image's tokens")
        mu = low + (high - low) * (tokens - few) / (many - few)
        shift = exp(mu) if kind == "exponential" else mu

    def list_of(n: int) -> np.ndarray:
        s = _shifted(np.linspace(1, 1 / n if even else last, n), shift)
        if end:
            s = 1 - (1 - s) * (1 - end) / (1 - s[-1])
        return bent(curve, n, s[0], s[-1]) if curve else s

    solver = solvers.consistency() if c.take("stochastic_sampling", False) else solvers.euler()
    return _flow(T, list_of)._replace(solver=solver)


def flow_heun(c: Fields) -> Sampling:
    """FlowMatchHeunDiscreteScheduler."""
    T, shift = c.take("num_train_timesteps", 1000), c.take("shift", 1.0)
    return _flow(T, lambda n: _shifted(np.linspace(1, _shifted(1 / T, shift), n), shift))


def _shifted(s, shift: float):
    """Esser et al. 2024 (arXiv:2403.03206), eq. 23. The lists' last time is shifted twice, as theirs is."""
    return shift * s / (1 + (shift - 1) * s)


def _flow(T: int, list_of: Callable[[int], np.ndarray]) -> Sampling:
    def grid(n: int) -> Level:
        check(n, T)
        s = np.append(list_of(n), 0)
        return levels(s, 1 - s, s)

    row = parameterize.conditioned(parameterize.velocity, lambda level: T * level.t)
    return Sampling(Flow(), row, grid, solvers.heun(), base.noisiest, base.free)


def edm_euler(c: Fields) -> Sampling:
    """EDMEulerScheduler."""
    low, high, rho = c.take("sigma_min", 0.002), c.take("sigma_max", 80.0), c.take("rho", 7.0)
    kind, predicted = (
        c.only("sigma_schedule", "karras", "exponential"),
        c.only("prediction_type", "epsilon", "v_prediction"),
    )
    to_clean = c.only("final_sigmas_type", "zero", "sigma_min") == "zero"
    c.skip("num_train_timesteps")
    inner = parameterize.edm(c.take("sigma_data", 0.5))

    def row(level: Level) -> Scalings:
        s = inner(level)
        return s if predicted == "epsilon" else s._replace(out=-s.out)

    def grid(n: int) -> Level:
        check(n, None)
        s = karras(n, high, low, rho) if kind == "karras" else np.geomspace(high, low, n)
        s = np.append(s, 0 if to_clean else s[-1])
        return levels(s, np.ones_like(s), s)

    return Sampling(EDM(), row, grid, solvers.euler(), base.unit, base.free)
