"""The result of reading a scheduler's config, and the fields that several schedulers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import copysign, exp, log
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import guidance, parameterize
from jaxdiff.interop.formats.config import Fields
from jaxdiff.levels import Level
from jaxdiff.parameterize import Denoiser, Prediction
from jaxdiff.processes import Discrete, Process
from jaxdiff.sampling import Sampling, identity
from jaxdiff.solvers import Solver

__all__ = [
    "FLOW",
    "FLOW_LCM",
    "LAST",
    "LEAST",
    "PREDICTIONS",
    "Clip",
    "Scheduler",
    "always",
    "build",
    "clipped",
    "ones",
    "prediction",
    "rescaled",
    "rescaled_within",
    "schedule_type",
    "spacing",
    "table",
    "thresholded",
    "unit",
    "whole_spacing",
]  # fmt: skip

Clip = Callable[[Denoiser], Denoiser]
PREDICTIONS = {"epsilon": parameterize.eps, "v_prediction": parameterize.v, "sample": parameterize.x0}
FLOW, FLOW_LCM = "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"
STEPS = 50
LAST = 2.0**-24  # replaces 0 as last abar where sigma / alpha must be finite
LEAST = 1e-60  # replaces 0 as last abar where x_0 is clipped; the reference divides by 0 and clips infinity


class Scheduler(NamedTuple):
    """A scheduler read from a config, to be used as

        denoise = sampling.clip(denoiser(apply, params, prediction, cond))
        levels, solver = sampling.prepare()
        x = sample(denoise, solver, levels, sampling.init_noise_std(levels) * normal, key)

    Attributes:
        process: time -> level.
        prediction: the network's prediction and noise input.
        sampling: levels, solver, clipping or thresholding, and the standard deviation of the initial noise, which often
            differs from the first level's. It has the reference's usual 50 steps, without guidance;
            `dataclasses.replace` changes them.
    """

    process: Process
    prediction: Prediction
    sampling: Sampling


def build(
    process: Process, prediction: Prediction, grid: Callable[[int], Level], solver: Callable[[int], Solver], *,
    std: Callable[[Level], Array] | None = None, clip: Clip | None = None,
) -> Scheduler:  # fmt: skip
    """Build a scheduler; `std` is `unit` by default."""
    sampling = Sampling(grid, solver, STEPS, clip=clip or identity, init_noise_std=std or unit)
    return Scheduler(process, prediction, sampling)


def table(
    c: Fields, start: float = 0.0001, end: float = 0.02, schedule: str = "linear", more: tuple[str, ...] = ()
) -> Discrete:
    """Return the table of betas; `more` are schedules of this class in addition to the three of all classes."""
    T, betas = c.get("num_train_timesteps", 1000), c.get("trained_betas", None)
    start, end = c.get("beta_start", start), c.get("beta_end", end)
    if betas is not None:
        c.ignore("beta_schedule")
        return Discrete.from_betas(np.asarray(betas))
    schedule = c.expect("beta_schedule", schedule, "linear", "scaled_linear", "squaredcos_cap_v2", *more)
    if schedule in ABAR:
        abar = np.array([ABAR[schedule](t) for t in np.arange(T + 1) / T])
        return Discrete.from_betas(np.minimum(1 - abar[1:] / abar[:-1], 0.999))
    return Discrete.cosine(T) if schedule == "squaredcos_cap_v2" else getattr(Discrete, schedule)(T, start, end)


def _laplace(t: float) -> float:
    """diffusers' "laplace": the square root of a logistic function of a Laplace distribution's quantile."""
    log_snr = -0.5 * copysign(1, 0.5 - t) * log(1 - 2 * abs(0.5 - t) + 1e-6)
    return (exp(log_snr) / (1 + exp(log_snr))) ** 0.5


# abar at times in [0, 1], whose ratios, at least 0.001, are 1 - beta.
ABAR = {"laplace": _laplace, "exp": lambda t: exp(-12 * t)}


def rescaled(c: Fields, table: Discrete, last: float = 0.0) -> Discrete:
    """Rescale to zero terminal SNR if configured; `last` replaces 0 as last abar where s must not be infinite."""
    if not c.get("rescale_betas_zero_snr", False):
        return table
    table = table.zero_terminal_snr()
    alpha, sigma = (np.append(a[:-1], b**0.5) for a, b in ((table.alpha, last), (table.sigma, 1 - last)))
    return replace(table, alpha=alpha, sigma=sigma)


def rescaled_within(c: Fields, table: Discrete, clip: Clip | None) -> Discrete:
    """Rescale to zero terminal SNR if configured; there, eps determines only the sign of x_0, enough for clipping."""
    blind = clip is not None and c.get("prediction_type", "epsilon") == "epsilon"
    return rescaled(c, table, LEAST if blind else 0.0)


def spacing(c: Fields, default: str) -> tuple[str, int]:
    """Return the spacing of times, and the offset of leading ones."""
    return c.expect("timestep_spacing", default, "leading", "trailing", "linspace"), c.get("steps_offset", 0)


def whole_spacing(c: Fields) -> tuple[str, int]:
    """Return `spacing` for times at which the table is read, by the reference from its end if they are below 0."""
    kind, offset = spacing(c, "leading")
    if kind == "leading" and offset < 0:
        raise ValueError(f"{c.kind}: steps_offset {offset} ends below the table's first time: it must be at least 0")
    return kind, offset


def prediction(c: Fields, *kinds: str) -> Prediction:
    """Return the prediction, one of `kinds` or else of the table; names that are not in the table mean x_0."""
    return parameterize.zero_based(
        PREDICTIONS.get(c.expect("prediction_type", *(kinds or PREDICTIONS)), parameterize.x0)
    )


def schedule_type(c: Fields) -> str | None:
    """Return the formula by which sigma / alpha decreases; None: it follows from the times."""
    chosen = [name for name in ("karras", "exponential", "beta") if c.get(f"use_{name}_sigmas", False)]
    if len(chosen) > 1:
        raise ValueError(f"sigmas have one schedule: got use_{'_sigmas and use_'.join(chosen)}_sigmas")
    return chosen[0] if chosen else None


def thresholded(c: Fields) -> Clip | None:
    """Return dynamic thresholding, if configured."""
    share, most = c.get("dynamic_thresholding_ratio", 0.995), c.get("sample_max_value", 1.0)
    if not c.get("thresholding", False):
        return None
    return lambda denoise: guidance.dynamic_threshold(denoise, share, max_scale=most)


def clipped(c: Fields, default: bool) -> Clip | None:
    """Return clipping of x_0, if configured."""
    reach = c.get("clip_sample_range", 1.0)
    return (lambda denoise: guidance.clip(denoise, -reach, reach)) if c.get("clip_sample", default) else None


def always(solver: Solver) -> Callable[[int], Solver]:
    """Return a function from any number of steps to `solver`."""
    return lambda n: solver


def unit(levels: Level) -> Array:
    """Return the standard deviation of x_t for data of standard deviation 1."""
    return jnp.hypot(levels.alpha[0], levels.sigma[0])


def ones(levels: Level) -> Array:
    """Return 1 in the dtype of the levels."""
    return jnp.ones_like(levels.sigma[0])
