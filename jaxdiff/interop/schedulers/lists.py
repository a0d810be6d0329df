"""Where diffusers' schedulers stop: their lists of times and of sigma / alpha, in float64.

A table's times count from 0 to T - 1 in these lists, as theirs do, with -1 for clean data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.levels import Level
from jaxdiff.processes import EDM, Discrete

__all__ = ["bent", "check", "inner_times", "karras", "levels", "ratio", "time_of", "times"]


def times(T: int, n: int, spacing: str, offset: int = 0) -> np.ndarray:
    """N times of T, falling: "leading" and "trailing" are whole, "linspace" is not.

    Args:
        T: the length of the table.
        n: N.
        spacing: "leading", "trailing" or "linspace" (Lin et al. 2023, arXiv:2305.08891, table 2).
        offset: is added to leading times.
    """
    if spacing == "linspace":
        return np.linspace(0, T - 1, n)[::-1]
    if spacing == "leading":
        return np.arange(n)[::-1] * (T // n) + float(offset)
    return np.round(np.arange(T, 0, -T / n)) - 1  # theirs, which rounding makes N + 1 times for N = 61 of 1,000


def inner_times(T: int, n: int, spacing: str, offset: int, last: int, *, rises: bool = False) -> np.ndarray:
    """N times as the DPM-Solvers list them: all but the last of N + 1, of the table's first `last`; falling or rising."""
    if spacing == "trailing":
        t = np.round(np.arange(last, 0, -T / n)) - 1
        return t[::-1] if rises else t
    if spacing == "linspace":
        t = np.round(np.linspace(0, last - 1, n + 1))
    else:
        t = np.arange(n + 1) * (last // (n + 1)) + float(offset)
    return t[:-1] if rises else t[:0:-1]


def bent(kind: str, n: int, high: float, low: float) -> np.ndarray:
    """N values of sigma / alpha from high to low: "karras" (rho = 7), "exponential" or "beta" (0.6, 0.6)."""
    if n == 1:
        return np.array([high])
    if kind == "karras":
        return karras(n, high, low, 7.0)
    if kind == "exponential":
        return np.exp(np.linspace(np.log(high), np.log(low), n))
    with jax.ensure_compile_time_eval():  # a grid is a constant of the program
        return np.asarray(grids.beta(EDM(), n - 1, start=high, end=low).sigma, np.float64)


def karras(n: int, high: float, low: float, rho: float) -> np.ndarray:
    """N values whose rho-th roots are equally spaced (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho


def ratio(table: Discrete) -> np.ndarray:
    """sigma / alpha of the table's T noisy levels."""
    return table.sigma[1:] / table.alpha[1:]


def time_of(table: Discrete, s: np.ndarray) -> np.ndarray:
    """The times of values of sigma / alpha, whose logarithm is linear between the table's, and stops at its ends.

    A table with zero terminal SNR may fall at its end, where the last 0 was replaced: the last piece that begins at or
    below a value is its.
    """
    known, value = np.log(ratio(table)), np.log(np.maximum(s, 1e-10))
    i = np.clip(np.max((value[..., None] >= known) * np.arange(table.T), axis=-1), 0, table.T - 2)
    return i + np.clip((known[i] - value) / (known[i] - known[i + 1]), 0, 1)


def check(n: int, most: int | None) -> None:
    """Raises ValueError unless a number of steps is a whole number from 1 to `most`."""
    if not isinstance(n, int) or n < 1 or (most is not None and n > most):
        bounds = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"the number of steps must be a whole number {bounds}, got {n!r:.80}")


def levels(t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> Level:
    """A grid, fields [N + 1]."""
    return Level(*(jnp.asarray(np.asarray(field, np.float64)) for field in (t, alpha, sigma)))
