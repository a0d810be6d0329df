"""Grids that divide the time of a process."""

from __future__ import annotations

from math import pi

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, is_traced
from jaxdiff.grids.base import check_decreasing, check_steps, ramp
from jaxdiff.levels import Level
from jaxdiff.processes import Process
from jaxdiff.processes.base import time_range

__all__ = ["beta", "by_time", "cosine", "shifted"]


@concrete
def by_time(
    process: Process,
    n: int | Array,
    *,
    start: float | Array | None = None,
    end: float | Array | None = None,
    max_steps: int | None = None,
) -> Level:
    """N steps of equal time.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        start, end: the first and the last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: n outside 1..max_steps, end above start, or a process without such a time of its own.
    """
    start, end = time_range(process, start, end)
    return process(_times(n, start, end, max_steps))


@concrete
def beta(
    process: Process,
    n: int | Array,
    *,
    alpha: float | Array = 0.6,
    beta: float | Array = 0.6,
    start: float | Array | None = None,
    end: float | Array | None = None,
    max_steps: int | None = None,
) -> Level:
    """Times at equal steps of the probability of a Beta distribution (Lee et al. 2024, arXiv:2407.12173).

    Parameters below 1 give more steps to both ends; 1 and 1 are equal steps, 1/2 and 1/2 Chebyshev's cosine. On EDM,
    whose time is the noise, the quantiles are those of sigma, as in diffusers' beta sigmas.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        alpha, beta: of the Beta distribution, > 0; may be traced, not differentiated. A smaller beta gives more steps
            to the noisy end, a smaller alpha to the clean one.
        start, end: the first and the last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: alpha or beta <= 0, n outside 1..max_steps, end above start, or a process without such a time of
            its own.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not is_traced(value) and not value > 0:
            raise ValueError(f"{name} of a Beta distribution must be positive, got {value}")
    start, end = time_range(process, start, end)
    share = _times(n, 1.0, 0.0, max_steps)
    check_decreasing("start", start, "end", end)
    # Each end is approached from its own side, where a difference from it is not rounded away.
    low, high = beta_quantile(share, alpha, beta)
    start, end = jnp.asarray(start, share.dtype), jnp.asarray(end, share.dtype)
    return process(jnp.where(share > 0.5, start - (start - end) * high, end + (start - end) * low))


@concrete
def cosine(
    process: Process,
    n: int | Array,
    *,
    sway: float | Array = -1.0,
    start: float | Array | None = None,
    end: float | Array | None = None,
    max_steps: int | None = None,
) -> Level:
    """Equal steps u of [0, 1], bent by a cosine: u + sway (cos(pi u / 2) - 1 + u) is the share of the time gone.

    Sway sampling of F5-TTS (Chen et al. 2024, arXiv:2410.06885). sway = -1 leaves 1 - cos(pi u / 2) and gives more
    steps to noise, 0 is `by_time`, and more than 0 gives more steps to the clean end.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        sway: in [-1, 2 / (pi - 2)]; may be traced.
        start, end: the first and the last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: sway beyond its range, where times would not fall; n outside 1..max_steps, end above start, or a
            process without such a time of its own.
    """
    if not is_traced(sway) and not -1 <= sway <= 2 / (pi - 2):
        raise ValueError(f"sway must lie in [-1, 2 / (pi - 2)], where times fall, got {sway}")
    start, end = time_range(process, start, end)
    check_decreasing("start", start, "end", end)
    left = _times(n, 1.0, 0.0, max_steps)  # 1 - u
    start, end, sway = (jnp.asarray(value, left.dtype) for value in (start, end, sway))
    # cos(pi u / 2) = sin(pi left / 2), which is exact at the clean end.
    left = left - sway * (jnp.sin(0.5 * pi * left) - left)
    return process(start * left + end * (1 - left))


@concrete
def shifted(
    process: Process,
    n: int | Array,
    shift: float | Array,
    *,
    start: float | Array | None = None,
    end: float | Array | None = None,
    max_steps: int | None = None,
) -> Level:
    """Equal steps of time, moved to t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23).

    On Flow, whose network is told t', it makes sigma / alpha `shift` times as large; a process whose network is told t
    is `processes.Shifted`. Flux's mu is log(shift).

    Args:
        process: one whose time lies in [0, 1].
        n: N, number of steps; may be traced if max_steps is given.
        shift: > 0, sqrt(m / n) for m pixels and a schedule tuned for n; may be traced.
        start, end: the first and the last time before the shift, in [0, 1]; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: shift <= 0, n outside 1..max_steps, or times that rise or leave [0, 1].
    """
    if not is_traced(shift) and not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    start, end = time_range(process, start, end)
    for name, t in (("start", start), ("end", end)):
        if not is_traced(t) and not 0 <= t <= 1:
            raise ValueError(f"times that are shifted lie in [0, 1], got {name} = {t}")
    t = _times(n, start, end, max_steps)
    moved = jnp.asarray(shift, t.dtype) * t
    return process(moved / (moved + (1 - t)))  # exactly 0 and 1 at 0 and 1


def beta_quantile(share: Array, alpha: float | Array, beta: float | Array) -> tuple[Array, Array]:
    """The quantile q of Beta(alpha, beta), and 1 - q, each exact relative to itself where it is small.

    By bisection of logit q, from the tail on whose side `share` lies, and a step of Newton's.

    Args:
        share: probability, in [0, 1].
        alpha, beta: > 0.

    Returns:
        (q, 1 - q), like share; the larger of the two is rounded to share's type.
    """
    dtype = share.dtype
    alpha, beta = jnp.asarray(alpha, dtype), jnp.asarray(beta, dtype)
    upper = share > 0.5
    tail = jnp.where(upper, 1 - share, share)
    p = jnp.where(tail == 0, 0.25, tail)
    a, b = (jnp.broadcast_to(jnp.where(upper, x, y), p.shape) for x, y in ((beta, alpha), (alpha, beta)))
    edge = -float(np.log(jnp.finfo(dtype).tiny))

    def halve(_, bounds):
        low, high = bounds
        mid = 0.5 * (low + high)
        below = jax.scipy.special.betainc(a, b, jax.nn.sigmoid(mid)) < p
        return jnp.where(below, mid, low), jnp.where(below, high, mid)

    bounds = jnp.full_like(p, -edge), jnp.full_like(p, edge)
    z = 0.5 * sum(jax.lax.stop_gradient(jax.lax.fori_loop(0, jnp.finfo(dtype).nmant + 16, halve, bounds)))
    log_slope = a * jax.nn.log_sigmoid(z) + b * jax.nn.log_sigmoid(-z) - jax.scipy.special.betaln(a, b)
    z = z - (jax.scipy.special.betainc(a, b, jax.nn.sigmoid(z)) - p) * jnp.exp(-log_slope)
    q = jnp.where(tail == 0, 0, jax.nn.sigmoid(z))
    rest = jnp.where(tail == 0, 1, jax.nn.sigmoid(-z))
    return jnp.where(upper, rest, q), jnp.where(upper, q, rest)


def _times(n: int | Array, start: float | Array, end: float | Array, max_steps: int | None) -> Array:
    size = check_steps(n, max_steps)
    check_decreasing("start", start, "end", end)
    return ramp(start, end, n, size)
