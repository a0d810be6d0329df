"""Grids with equal steps in a function of sigma / alpha, for any process."""

from __future__ import annotations

from math import pi

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, is_traced
from jaxdiff.grids.base import check_decreasing, check_steps, ramp
from jaxdiff.levels import Level, append_clean, clean_level
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process, time_range

__all__ = ["by_angle", "by_lambda", "exponential", "karras", "polyexponential"]


@concrete
def by_lambda(
    process: Process, n: int | Array, *, start: float | Array, end: float | Array, max_steps: int | None = None
) -> Level:
    """N equal steps of lam = log(alpha / sigma), half the log-SNR (Lu et al. 2022, arXiv:2206.00927, sec. 3.4).

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        start, end: first and last time, both with finite lam; may be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1]; follow with `levels.append_clean` to end at sigma = 0.

    Raises:
        ValueError: n outside 1..max_steps, end >= start, or an infinite lam.
    """
    size = check_steps(n, max_steps)
    check_process(process, "time")
    check_decreasing("start", start, "end", end)
    lam = [process(jnp.asarray(t, float)).lam for t in (start, end)]
    if not is_traced(lam) and not np.all(np.isfinite(lam)):
        raise ValueError(
            f"equal steps of lam need ends with finite lam, got lam {lam[0]} and {lam[1]}: "
            "move start or end to where alpha > 0 and sigma > 0"
        )
    return _between(process, start, end, n, process.time(ramp(lam[0], lam[1], n, size)))


@concrete
def by_angle(
    process: Process,
    n: int | Array,
    *,
    start: float | Array | None = None,
    end: float | Array | None = None,
    scale: float | Array = 1.0,
    max_steps: int | None = None,
) -> Level:
    """N equal steps of the angle arctan(sigma / (scale alpha)), which may go from pure noise to clean data.

    The optimal grid of the probability-flow ODE for Gaussian data of standard deviation `scale` (Sabour et al. 2024,
    arXiv:2404.14507, theorem 3.1); with scale = 1, equal times of `processes.Cosine`.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        start, end: first and last time; None is the process's own. May be traced.
        scale: standard deviation of the data, > 0; may be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: scale <= 0, n outside 1..max_steps, end >= start, or no start or end for a process without one.
    """
    size = check_steps(n, max_steps)
    start, end = time_range(process, start, end)
    check_decreasing("start", start, "end", end)
    _check_positive("scale, the data's standard deviation,", scale)
    scale = jnp.asarray(scale, float)
    high, low = (process(jnp.asarray(t, float)) for t in (start, end))
    angle = [jnp.arctan2(level.sigma, scale * level.alpha) for level in (high, low)]
    i = jnp.arange(size + 1)
    inner = jnp.where((i == 0) | (i >= n), pi / 4, ramp(angle[0], angle[1], n, size))  # lam of the ends may be infinite
    return _between(process, start, end, n, process.time(jnp.log(jnp.cos(inner) / (scale * jnp.sin(inner)))))


@concrete
def karras(
    process: Process,
    n: int | Array,
    *,
    sigma_min: float | Array,
    sigma_max: float | Array,
    rho: float | Array = 7.0,
    max_steps: int | None = None,
) -> Level:
    """N levels of sigma / alpha equally spaced in its rho-th root, then clean data (Karras et al. 2022, eq. 5).

    arXiv:2206.00364.

    Args:
        process: the process; needs `time`.
        n: N, number of steps; may be traced if max_steps is given.
        sigma_min, sigma_max: sigma / alpha of levels N - 1 and 0; may be traced.
        rho: > 0; larger values give more steps at low noise.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1], the last with sigma = 0.

    Raises:
        ValueError: n outside 1..max_steps, or sigma_min >= sigma_max or <= 0.
    """
    size = _check(n, max_steps, sigma_max, sigma_min)
    _check_positive("rho", rho)
    high, low = (jnp.asarray(sigma, float) ** (1 / rho) for sigma in (sigma_max, sigma_min))
    return from_sigma_over_alpha(process, ramp(high, low, n - 1, size - 1) ** rho, n)


@concrete
def exponential(
    process: Process,
    n: int | Array,
    *,
    sigma_min: float | Array,
    sigma_max: float | Array,
    max_steps: int | None = None,
) -> Level:
    """N levels of sigma / alpha equally spaced in its logarithm, then clean data.

    Args:
        process: the process; needs `time`.
        n: N, number of steps; may be traced if max_steps is given.
        sigma_min, sigma_max: sigma / alpha of levels N - 1 and 0; may be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1], the last with sigma = 0.

    Raises:
        ValueError: n outside 1..max_steps, or sigma_min >= sigma_max or <= 0.
    """
    size = _check(n, max_steps, sigma_max, sigma_min)
    return from_sigma_over_alpha(process, jnp.exp(ramp(jnp.log(sigma_max), jnp.log(sigma_min), n - 1, size - 1)), n)


@concrete
def polyexponential(
    process: Process,
    n: int | Array,
    *,
    sigma_min: float | Array,
    sigma_max: float | Array,
    rho: float | Array = 1.0,
    max_steps: int | None = None,
) -> Level:
    """N levels whose log(sigma / alpha) is a power rho of equal steps, then clean data (k-diffusion's polyexponential).

    Args:
        process: the process; needs `time`.
        n: N, number of steps; may be traced if max_steps is given.
        sigma_min, sigma_max: sigma / alpha of levels N - 1 and 0; may be traced.
        rho: > 0; 1 is `exponential`, larger values give more steps at low noise.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1], the last with sigma = 0.

    Raises:
        ValueError: rho <= 0, n outside 1..max_steps, or sigma_min >= sigma_max or <= 0.
    """
    size = _check(n, max_steps, sigma_max, sigma_min)
    _check_positive("rho", rho)
    left = ramp(1.0, 0.0, n - 1, size - 1)
    power = jnp.where(left > 0, jnp.where(left > 0, left, 1) ** rho, 0)  # 0 ** rho has a NaN gradient in rho
    low, high = jnp.log(jnp.asarray(sigma_min, float)), jnp.log(jnp.asarray(sigma_max, float))
    return from_sigma_over_alpha(process, jnp.exp(low + power * (high - low)), n)


def from_sigma_over_alpha(process: Process, sigma: Array, n: int | Array) -> Level:
    """The levels of sigma / alpha, fields [len(sigma) + 1], clean from step n on."""
    check_process(process, "time")
    levels = append_clean(process(process.time(-jnp.log(sigma))))
    over = jnp.arange(sigma.shape[0] + 1) >= n
    return Level(*(jnp.where(over, end, field) for end, field in zip(clean_level(levels), levels, strict=True)))


def _between(process: Process, start: float | Array, end: float | Array, n: int | Array, t: Array) -> Level:
    # The ends are exactly start and end, without the rounding of the way through lam.
    i = jnp.arange(t.shape[0])
    t = jnp.where(i == 0, jnp.asarray(start, t.dtype), t)
    return process(jnp.where(i >= n, jnp.asarray(end, t.dtype), t))


def _check_positive(name: str, value: float | Array) -> None:
    if not is_traced(value) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _check(n: int | Array, max_steps: int | None, sigma_max: float | Array, sigma_min: float | Array) -> int:
    size = check_steps(n, max_steps)
    check_decreasing("sigma_max", sigma_max, "sigma_min", sigma_min, positive=True)
    return size
