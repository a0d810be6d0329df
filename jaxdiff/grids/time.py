"""Grids with steps in the time of a process."""

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
    """N equal steps of time.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        start, end: first and last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: n outside 1..max_steps, end >= start, or no start or end for a process without one.
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
    """Times at N + 1 equally spaced quantiles of a Beta distribution (Lee et al. 2024, arXiv:2407.12173).

    Parameters below 1 give more steps at both ends; 1 and 1 are equal steps, 1/2 and 1/2 a cosine (Chebyshev points).
    On EDM, whose time is sigma, the quantiles are those of sigma, as in diffusers' beta sigmas.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        alpha, beta: parameters of the Beta distribution, > 0; may be traced, not differentiated. A smaller beta gives
            more steps at the noisy end, a smaller alpha at the clean end.
        start, end: first and last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: alpha or beta <= 0, n outside 1..max_steps, end >= start, or no start or end for a process without
            one.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not is_traced(value) and not value > 0:
            raise ValueError(f"{name} of a Beta distribution must be positive, got {value}")
    start, end = time_range(process, start, end)
    share = _times(n, 1.0, 0.0, max_steps)
    check_decreasing("start", start, "end", end)
    # Times are counted from the nearer end, so that small distances from it are not rounded away.
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
    """Sway sampling: for equal steps u of [0, 1], a share u + sway (cos(pi u / 2) - 1 + u) of the time has passed.

    F5-TTS (Chen et al. 2024, arXiv:2410.06885). sway = -1 is 1 - cos(pi u / 2), with more steps at the noisy end; 0 is
    `by_time`; positive values give more steps at the clean end.

    Args:
        process: the process.
        n: N, number of steps; may be traced if max_steps is given.
        sway: in [-1, 2 / (pi - 2)]; may be traced.
        start, end: first and last time; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: sway outside its range, where times would not decrease; n outside 1..max_steps, end >= start, or no
            start or end for a process without one.
    """
    if not is_traced(sway) and not -1 <= sway <= 2 / (pi - 2):
        raise ValueError(f"sway must lie in [-1, 2 / (pi - 2)], where times decrease, got {sway}")
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
    """Equal steps of time, shifted to t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23).

    On Flow this multiplies sigma / alpha by `shift`, and the network receives t'. With `processes.Shifted` it receives
    t. Flux's mu is log(shift).

    Args:
        process: a process whose time lies in [0, 1].
        n: N, number of steps; may be traced if max_steps is given.
        shift: > 0, sqrt(m / n) for m pixels and a schedule tuned for n; may be traced.
        start, end: first and last time before the shift, in [0, 1]; None is the process's own. May be traced.
        max_steps: largest N, static.

    Returns:
        levels, fields [N + 1], or [max_steps + 1].

    Raises:
        ValueError: shift <= 0, n outside 1..max_steps, end >= start, or times outside [0, 1].
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
    """The quantile q of Beta(alpha, beta) and 1 - q, each with a small relative error.

    By bisection of logit q, in the nearer tail, and one step of Newton's method.

    Args:
        share: probabilities, in [0, 1].
        alpha, beta: > 0.

    Returns:
        (q, 1 - q), like share.
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
