"""Grids: where a sampler stops on its way from noise to data.

A grid is a `Level` whose fields have shape [N + 1], noisiest first. Any decreasing times of a process are one:
`process(jnp.linspace(1, 0, 51))`; these are the usual ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import Level, append_clean
from jaxdiff.processes import Discrete, Process

__all__ = ["by_lambda", "by_time", "ddpm", "exponential", "karras"]

_SPACINGS = ("leading", "trailing", "linspace")


def by_time(process: Process, n: int, *, start: float | Array = 1.0, end: float | Array = 0.0) -> Level:
    """N steps of equal time.

    Args:
        process: its time need not run over [0, 1]: set `start` and `end` for EDM (sigma) or a beta table (T..0).
        n: N, number of steps.
        start, end: the first and the last time; may be traced.
    Returns:
        levels, fields [N + 1].
    Raises:
        ValueError: n < 1, or end above start.
    """
    _check(n, "start", start, "end", end)
    return process(_linspace(start, end, n + 1))


def by_lambda(process: Process, n: int, *, start: float | Array, end: float | Array) -> Level:
    """N steps of equal lam = log(alpha / sigma), half the log-SNR (Lu et al. 2022, arXiv:2206.00927, section 3.4).

    Args:
        process: the process.
        n: N, number of steps.
        start, end: the first and the last time, both with finite lam; may be traced.
    Returns:
        levels, fields [N + 1]; follow with `levels.append_clean` to end at sigma = 0.
    Raises:
        ValueError: n < 1, end above start, or an infinite lam.
    """
    _check(n, "start", start, "end", end)
    lam = [process(jnp.asarray(t, float)).lam for t in (start, end)]
    if not any(isinstance(value, jax.core.Tracer) for value in lam) and not np.all(np.isfinite(lam)):
        raise ValueError(
            f"equal steps of lam need ends with finite lam, got lam {lam[0]} and {lam[1]}: "
            "move start or end to where alpha > 0 and sigma > 0"
        )
    return process(process.time(_linspace(lam[0], lam[1], n + 1)))


def karras(
    process: Process, n: int, *, sigma_min: float | Array, sigma_max: float | Array, rho: float | Array = 7.0
) -> Level:
    """N levels of sigma / alpha equally spaced in its rho-th root, then clean data (Karras et al. 2022, eq. 5).

    arXiv:2206.00364.

    Args:
        process: the process, which names the time of each level.
        n: N, number of steps.
        sigma_min, sigma_max: of sigma / alpha, at steps N - 1 and 0; may be traced.
        rho: larger gives more steps to low noise.
    Returns:
        levels, fields [N + 1], the last with sigma = 0.
    Raises:
        ValueError: n < 1, or sigma_min >= sigma_max or <= 0.
    """
    _check(n, "sigma_max", sigma_max, "sigma_min", sigma_min, positive=True)
    high, low = (jnp.asarray(sigma, float) ** (1 / rho) for sigma in (sigma_max, sigma_min))
    return _by_sigma(process, _linspace(high, low, n) ** rho)


def exponential(process: Process, n: int, *, sigma_min: float | Array, sigma_max: float | Array) -> Level:
    """N levels of sigma / alpha equally spaced in its logarithm, then clean data.

    Args:
        process: the process, which names the time of each level.
        n: N, number of steps.
        sigma_min, sigma_max: of sigma / alpha, at steps N - 1 and 0; may be traced.
    Returns:
        levels, fields [N + 1], the last with sigma = 0.
    Raises:
        ValueError: n < 1, or sigma_min >= sigma_max or <= 0.
    """
    _check(n, "sigma_max", sigma_max, "sigma_min", sigma_min, positive=True)
    return _by_sigma(process, jnp.exp(_linspace(jnp.log(sigma_max), jnp.log(sigma_min), n)))


def ddpm(process: Discrete, n: int, spacing: str = "trailing") -> Level:
    """A DDPM's integer times, N of its T, then clean data (Lin et al. 2023, arXiv:2305.08891, table 2).

    Args:
        process: a beta table.
        n: N, number of steps, at most T.
        spacing: "trailing" starts at T and always sees the noisiest level, "leading" ends at 1 and never does when
            N < T, "linspace" has both ends. Times are rounded to even, as the references do.
    Returns:
        levels, fields [N + 1], with integer t, the last 0.
    Raises:
        ValueError: n outside 1..T, or another spacing.
    """
    T = process.T
    if not 1 <= n <= T:
        raise ValueError(f"n must lie in 1..{T}, the length of the table, got {n}")
    if spacing == "trailing":
        t = np.round(T - np.arange(n) * (T / n))
    elif spacing == "leading":
        t = 1 + np.arange(n)[::-1] * (T // n)
    elif spacing == "linspace":
        t = 1 + np.round(np.linspace(T - 1, 0, n))
    else:
        raise ValueError(f"spacing must be one of {', '.join(_SPACINGS)}, got {spacing!r}")
    return process(jnp.asarray(np.append(t, 0), jnp.int32))


def _by_sigma(process: Process, sigma: Array) -> Level:
    return append_clean(process(process.time(-jnp.log(sigma))))


def _linspace(start: float | Array, end: float | Array, n: int) -> Array:
    # jnp.linspace leaves the first point when n = 1 and keeps both ends exact otherwise.
    return jnp.linspace(jnp.asarray(start, float), jnp.asarray(end, float), n)


def _check(n: int, high_name: str, high, low_name: str, low, *, positive: bool = False) -> None:
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"a grid has an integer number of steps, at least one step, got n = {n!r:.80}")
    if isinstance(high, jax.core.Tracer) or isinstance(low, jax.core.Tracer):
        return
    if not low < high or (positive and not low > 0):
        bound = f"0 < {low_name} < {high_name}" if positive else f"{low_name} < {high_name}"
        raise ValueError(f"a grid goes from more noise to less, {bound}; got {high_name} = {high}, {low_name} = {low}")
