"""Grids from tables: published noise levels, strides and sections of a DDPM's times."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, describe, is_traced
from jaxdiff.grids.base import check_steps, is_static, ramp
from jaxdiff.grids.sigma import from_sigma_over_alpha
from jaxdiff.levels import Level
from jaxdiff.processes import Discrete, Process

__all__ = ["AYS", "ddpm", "from_sigmas", "respaced"]

# sigma / alpha of grids of ten steps (Sabour et al. 2024, arXiv:2404.14507, table 3).
AYS = {
    "stable-diffusion-1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "stable-diffusion-xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd-if": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "stable-video-diffusion": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}

_SPACINGS = ("leading", "trailing", "linspace")


@concrete
def from_sigmas(
    process: Process, sigmas: Array, n: int | Array | None = None, *, max_steps: int | None = None
) -> Level:
    """The levels of a list of sigma / alpha, such as those of "Align Your Steps" (`AYS`).

    For another number of steps, log sigma is interpolated linearly (Sabour et al. 2024, arXiv:2404.14507, sec. 3.3).

    Args:
        process: the process; needs `time`.
        sigmas: [M + 1] decreasing numbers. If they are concrete the last may be 0, clean data, which is not
            interpolated. Otherwise follow with `levels.append_clean` to end at sigma = 0.
        n: N, number of steps; None is M. May be traced if max_steps is given.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: `sigmas` is not a list of at least two decreasing numbers, or n outside 1..max_steps.
    """
    traced = is_traced(sigmas)
    values = sigmas if traced else np.asarray(sigmas, np.float64)
    falls = traced or (np.all(np.diff(values) < 0) and np.all(np.isfinite(values)) and values[-1] >= 0)
    if values.ndim != 1 or len(values) < 2 or not falls:
        raise ValueError(f"sigmas must be a list of at least two decreasing numbers, the last >= 0, got {sigmas}")
    ends_clean = not traced and values[-1] == 0
    n = len(values) - 1 if n is None else n
    size = check_steps(n, max_steps)
    knots = jnp.asarray(values[:-1] if ends_clean else values, float)
    # The number of noisy levels is that of steps if the grid ends at clean data, one more otherwise.
    last, shape = (n - 1, size - 1) if ends_clean else (n, size)
    if not (is_static(n) and n == size == len(values) - 1):
        where = ramp(0.0, len(knots) - 1.0, last, shape)
        knots = jnp.exp(jnp.interp(where, jnp.arange(len(knots), dtype=where.dtype), jnp.log(knots)))
    return from_sigma_over_alpha(process, knots, n) if ends_clean else process(process.time(-jnp.log(knots)))


@concrete
def ddpm(process: Discrete, n: int | Array, spacing: str = "trailing", *, max_steps: int | None = None) -> Level:
    """A DDPM's integer times, N of its T, then clean data (Lin et al. 2023, arXiv:2305.08891, table 2).

    Args:
        process: a beta table.
        n: N, number of steps, at most T; may be traced if max_steps is given.
        spacing: "trailing" starts at T, the noisiest level; "leading" ends at 1, and does not contain T if N < T;
            "linspace" contains both, or T alone. Times are rounded as in diffusers, whose "linspace" of one step is 1.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1], with integer t, the last 0.

    Raises:
        ValueError: n or max_steps outside 1..T, n above max_steps, an unknown spacing, or a process without a table.
    """
    _check_table(process)
    if spacing not in _SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(_SPACINGS)}, got {spacing!r}")
    T = process.T
    for name, value in (("n", n), ("max_steps", max_steps)):
        if isinstance(value, int | np.integer) and not 1 <= value <= T:
            raise ValueError(f"{name} must lie in 1..{T}, the length of the table, got {value}")
    size = check_steps(n, max_steps)
    if isinstance(n, int | np.integer):
        return process(jnp.asarray(_strides(T, int(n), spacing, size), jnp.int32))
    # diffusers rounds in float64: a table for all numbers of steps reproduces its times exactly.
    rows = np.stack([_strides(T, m, spacing, size) for m in range(1, size + 1)])
    return process(jnp.asarray(rows, jnp.int32)[n - 1])


def _check_table(process: Process) -> None:
    if not isinstance(process, Discrete):
        raise ValueError(f"the times of a DDPM are those of a table (processes.Discrete), got {describe(process)}")


def _strides(T: int, n: int, spacing: str, size: int) -> np.ndarray:
    if spacing == "trailing":
        t = np.round(np.arange(T, 0, -T / n))[:n]  # rounding may give a time more
    elif spacing == "leading":
        t = 1 + np.arange(n)[::-1] * (T // n)
    else:
        t = 1 + np.round(np.linspace(0, T - 1, n))[::-1] if n > 1 else np.array([T])
    return np.append(t, np.zeros(size + 1 - n))


@concrete
def respaced(process: Discrete, sections: str | Sequence[int]) -> Level:
    """A DDPM's integer times, a number from each section, then clean data (Nichol and Dhariwal 2021, arXiv:2102.09672).

    The `timestep_respacing` of the authors' code: the T times are divided into sections of (nearly) equal length, the
    cleanest first; each contributes its first time, its last, and others evenly between them.

    Args:
        process: a beta table.
        sections: number of times of each section, as (10, 15, 20) or "10,15,20"; or "ddim25" for 25 times from 1 on,
            with the smallest integer stride that gives 25.

    Returns:
        levels, fields [N + 1], where N is the sum of the numbers, with integer t, the last 0.

    Raises:
        ValueError: neither a list of integers nor "ddimN", no times, more times than a section has, no such stride, or
            a process without a table.
    """
    _check_table(process)
    t = _fixed_stride(process.T, sections) if str(sections).startswith("ddim") else _sections(process.T, sections)
    return process(jnp.asarray(np.append(t[::-1], 0), jnp.int32))


def _fixed_stride(T: int, sections: str | Sequence[int]) -> np.ndarray:
    count = str(sections).removeprefix("ddim")
    for stride in range(1, T) if count.isdecimal() else ():
        if -(-T // stride) == int(count):
            return np.arange(1, T + 1, stride)
    raise ValueError(f"no integer stride below T = {T} gives this number of times, got {sections!r}")


def _sections(T: int, sections: str | Sequence[int]) -> np.ndarray:
    numbers = sections.split(",") if isinstance(sections, str) else list(sections)
    if not all(str(n).strip().isdecimal() for n in numbers) or not sum(counts := [int(n) for n in numbers]):
        raise ValueError(f'sections are whole numbers of times, as "10,15,20", or "ddim25"; got {sections!r}')
    ends = np.cumsum([T // len(counts) + (i < T % len(counts)) for i in range(len(counts))])
    times, start = [], 1
    for count, end in zip(counts, ends, strict=True):
        size = int(end) - start + 1
        if count > size:
            raise ValueError(f"a section of {size} times has no {count}: got {sections!r} for T = {T}")
        # Strides are summed one by one, as in the reference, to reproduce its rounding.
        strides = np.full(count, (size - 1) / max(count - 1, 1))
        strides[:1] = 0
        times.append(start + np.round(np.cumsum(strides)))
        start = int(end) + 1
    return np.concatenate(times)
