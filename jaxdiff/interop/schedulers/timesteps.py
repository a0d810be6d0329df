"""The lists of times and of sigma / alpha of diffusers' schedulers, in float64.

In these lists, a table's times count from 0 to T - 1, as in diffusers, with -1 for clean data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import grids
from jaxdiff.levels import Level
from jaxdiff.processes import EDM, Discrete

__all__ = [
    "check",
    "end_of",
    "inner_times",
    "karras",
    "levels",
    "lookup",
    "of_table",
    "ratio",
    "shifted",
    "sigma_schedule",
    "time_of",
    "times",
]  # fmt: skip


def times(T: int, n: int, spacing: str, offset: int = 0) -> np.ndarray:
    """Return N decreasing times of T; "leading" and "trailing" are integers, "linspace" is not.

    Args:
        T: length of the table.
        n: N.
        spacing: "leading", "trailing" or "linspace" (Lin et al. 2023, arXiv:2305.08891, table 2).
        offset: added to leading times.
    """
    if spacing == "linspace":
        return np.linspace(0, T - 1, n)[::-1]
    if spacing == "leading":
        return np.arange(n)[::-1] * (T // n) + float(offset)
    return np.round(np.arange(T, 0, -T / n)) - 1  # as diffusers: rounding gives N + 1 times for N = 61 of 1,000


def inner_times(T: int, n: int, spacing: str, offset: int, last: int, *, rises: bool = False) -> np.ndarray:
    """Return N times as in the DPM-Solvers: all but the last of N + 1, of the table's first `last` times."""
    if spacing == "trailing":
        t = np.round(np.arange(last, 0, -T / n)) - 1
        return t[::-1] if rises else t
    if spacing == "linspace":
        t = np.round(np.linspace(0, last - 1, n + 1))
    else:
        t = np.arange(n + 1) * (last // (n + 1)) + float(offset)
    return t[:-1] if rises else t[:0:-1]


def sigma_schedule(schedule_type: str, n: int, high: float, low: float) -> np.ndarray:
    """Return N values of sigma / alpha between two values: "karras" (rho = 7), "exponential" or "beta" (0.6, 0.6)."""
    if n == 1:
        return np.array([high])
    if schedule_type == "karras":
        return karras(n, high, low, 7.0)
    if schedule_type == "exponential":
        return np.exp(np.linspace(np.log(high), np.log(low), n))
    with jax.ensure_compile_time_eval():  # a grid is a constant of the program
        share = np.asarray(grids.beta(EDM(), n - 1, start=1.0).sigma, np.float64)
    return low + share * (high - low)


def karras(n: int, high: float, low: float, rho: float) -> np.ndarray:
    """Return N values whose rho-th roots are equally spaced (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho


def shifted(s: Any, shift: float) -> Any:
    """Shift times by Esser et al. 2024 (arXiv:2403.03206), eq. 23."""
    return shift * s / (1 + (shift - 1) * s)


def ratio(table: Discrete) -> np.ndarray:
    """Return sigma / alpha of the table's T noisy levels."""
    return table.sigma[1:] / table.alpha[1:]


def time_of(table: Discrete, s: np.ndarray) -> np.ndarray:
    """Return the times of values of sigma / alpha, by linear interpolation of the logarithms in the table.

    If the table's last level has less noise than an earlier one (zero terminal SNR, with 0 replaced in the last abar),
    the last two levels that enclose the value are used.
    """
    of_table, s = np.log(ratio(table)), np.log(s)
    reached = s[:, None] >= of_table
    low = np.where(reached.any(1), table.T - 1 - np.argmax(reached[:, ::-1], axis=1), 0)
    low = np.minimum(low, table.T - 2)
    w = (of_table[low] - s) / (of_table[low] - of_table[low + 1])
    w = np.clip(w, 0, 1)
    return (1 - w) * low + w * (low + 1)


def check(n: int, most: int | None) -> None:
    """Check that a number of steps is an integer from 1 to `most`."""
    if not isinstance(n, int) or n < 1 or (most is not None and n > most):
        bounds = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"the number of steps must be a whole number {bounds}, got {n!r:.80}")


def levels(t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> Level:
    """Return a grid with fields [N + 1]."""
    return Level(*(jnp.asarray(np.asarray(field, np.float64)) for field in (t, alpha, sigma)))


def of_table(table: Discrete, t: np.ndarray, end: tuple[int, float, float]) -> Level:
    """Return the grid of integer times, counted from 0, and an end; time -1 is the table's last, as in diffusers."""
    alpha, sigma = (np.append(a[1:][t], last) for a, last in zip((table.alpha, table.sigma), end[1:], strict=True))
    return levels(np.append(t + 1, end[0]), alpha, sigma)


def end_of(table: Discrete, to_clean: bool) -> tuple[int, float, float]:
    """Return t, alpha and sigma at the end: of clean data, or of the table's first level."""
    i = 0 if to_clean else 1
    return i, float(table.alpha[i]), float(table.sigma[i])


def lookup(table: Discrete, end: tuple[int, float, float]) -> Callable[[Array], Level]:
    """Return a function from times, counted from 0, to levels of the table; times below 0 give the end."""

    def level(t: Array) -> Level:
        i = jnp.round(t).astype(jnp.int32) + 1
        at = Level(i, *(jnp.asarray(a)[jnp.clip(i, 0, table.T)] for a in (table.alpha, table.sigma)))
        return Level(*(jnp.where(i > 0, field, last) for field, last in zip(at, end, strict=True)))

    return level
