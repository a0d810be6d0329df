"""Distributions of the training time t.

A distribution is a function (key, B) -> (t [B], weight [B]): times, and a factor of each example's loss. The factor is
1, or for importance samples (`importance`, and `uniform_discrete` with probabilities) the one that keeps the expected
loss of the uniform density.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sinh

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, check_grid, steps_of
from jaxdiff.processes import EDM, Discrete, Process
from jaxdiff.processes.base import check_process
from jaxdiff.types import TimeSampler

__all__ = [
    "default_times",
    "importance",
    "log_normal",
    "logit_normal",
    "on_grid",
    "scheduled",
    "stratified",
    "u_shaped",
    "uniform",
    "uniform_discrete",
]

T_MIN = 1e-4  # not 0: at sigma = 0 the target (x_0 - skip x) / out of most predictions is 0 / 0


@factory
def uniform(low: float = T_MIN, high: float = 1.0) -> TimeSampler:
    """t ~ U[low, high).

    Args:
        low, high: the ends, in the process's time; sigma(low) > 0.

    Raises:
        ValueError: low >= high.
    """
    _check(low, high)
    return lambda key, batch: _unweighted(jax.random.uniform(key, (batch,), minval=low, maxval=high))


@factory
def stratified(low: float = T_MIN, high: float = 1.0) -> TimeSampler:
    """B equally spaced times with one random offset (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).

    Each t is uniform on [low, high), and a batch covers the range evenly, which reduces the variance of the loss.

    Args:
        low, high: the ends, in the process's time; sigma(low) > 0.

    Raises:
        ValueError: low >= high.
    """
    _check(low, high)
    return lambda key, batch: _unweighted(low + (high - low) * _evenly(key, batch))


@factory
def log_normal(process: Process, mean: float = -1.2, std: float = 1.2, *, stratified: bool = False) -> TimeSampler:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, arXiv:2206.00364, table 1).

    Args:
        process: the process of the loss; needs `time`.
        mean, std: the paper's P_mean and P_std.
        stratified: whether a batch covers the distribution evenly, as that of `stratified`.
    """
    check_process(process, "time")
    return lambda key, batch: _unweighted(process.time(-(mean + std * _normal(key, batch, stratified))))


@factory
def logit_normal(mean: float = 0.0, std: float = 1.0, *, stratified: bool = False) -> TimeSampler:
    """logit(t) ~ N(mean, std^2), t in (0, 1) (Esser et al. 2024, arXiv:2403.03206, eq. 19).

    Args:
        mean: negative values give more times near data, positive ones near noise.
        std: of logit(t).
        stratified: whether a batch covers the distribution evenly, as that of `stratified`.
    """
    return lambda key, batch: _unweighted(jax.nn.sigmoid(mean + std * _normal(key, batch, stratified)))


@factory
def scheduled(process: Process, schedule: Process, times: TimeSampler | None = None) -> TimeSampler:
    """The levels of another process at its own times, so that its schedule is the training density of lam.

    The network still receives the time of `process`, and is sampled with it (Kingma and Gao 2023, arXiv:2303.00848). An
    example of a schedule is `processes.Laplace` (Hang et al. 2024, arXiv:2407.03297).

    Args:
        process: the process of the loss; needs `time`.
        schedule: the process whose lam are drawn.
        times: distribution of the times of `schedule`; None is that of `default_times`.

    Raises:
        ValueError: not processes, or a process without `time`; no `times` for a schedule without a noisiest time.
    """
    check_process(process, "time")
    check_process(schedule)
    times = default_times(schedule) if times is None else times

    def renamed(key: Array, batch: int) -> tuple[Array, Array]:
        t, weight = times(key, batch)
        return process.time(schedule(t).lam), weight

    return renamed


@factory
def on_grid(levels: Level) -> TimeSampler:
    """The times from which the steps of a sampler start, equally likely: for a student of these steps alone.

    The k-step distillation of rectified flow (Liu et al. 2022, arXiv:2209.03003).

    Args:
        levels: a grid, fields [N + 1], which may repeat its last level; that is never drawn.

    Raises:
        ValueError: `levels` is not a grid.
    """
    check_grid(levels)

    def times(key: Array, batch: int) -> tuple[Array, Array]:
        t = jnp.asarray(levels.t)
        return _unweighted(t[jax.random.randint(key, (batch,), 0, steps_of(levels))])

    return times


@factory
def u_shaped(a: float = 4.0) -> TimeSampler:
    """p(t) ~ exp(a t) + exp(a (1 - t)) on [0, 1], for pairs of `distill.reflow` (Lee et al. 2024, arXiv:2405.20320).

    Args:
        a: the density at both ends is cosh(a / 2) times that in the middle.

    Raises:
        ValueError: a is not positive.
    """
    if not a > 0:
        raise ValueError(f"a U-shaped density needs a > 0, got {a}")

    def times(key: Array, batch: int) -> tuple[Array, Array]:
        u = jax.random.uniform(key, (batch,), minval=-1.0, maxval=1.0)
        # Away from 0 as `uniform` is; rounding might exceed 1.
        return _unweighted(jnp.clip(0.5 + jnp.arcsinh(u * sinh(a / 2)) / a, T_MIN, 1))

    return times


@factory
def uniform_discrete(T: int, probs: Array | None = None) -> TimeSampler:
    """t in 1..T, uniform or with given probabilities (Nichol and Dhariwal 2021, arXiv:2102.09672, sec. 3.3).

    Args:
        T: the length of the beta table.
        probs: [T], proportional to the probabilities of 1..T; each loss is divided by T p_t. None is uniform.

    Raises:
        ValueError: T < 1 or probs of another shape.
    """
    if T < 1 or (probs is not None and np.shape(probs) != (T,)):
        raise ValueError(f"T must be at least 1 and probs have shape [T], got T = {T}, probs {probs}")
    if probs is None:
        return lambda key, batch: _unweighted(jax.random.randint(key, (batch,), 1, T + 1))
    draw = _bins(probs)

    def times(key: Array, batch: int) -> tuple[Array, Array]:
        i, weight = draw(key, batch)
        return i + 1, weight

    return times


@factory
def importance(density: Array, low: float = T_MIN, high: float = 1.0) -> TimeSampler:
    """t from a density, with each loss divided by it: the expected loss of `uniform`, with less variance.

    Args:
        density: [K] > 0, proportional to the density on K equal parts of [low, high]; the square root of the mean
            squared loss there is optimal (Nichol and Dhariwal 2021, eq. 18). May be traced.
        low, high: the ends, in the process's time; sigma(low) > 0.

    Raises:
        ValueError: low >= high, or a density that is no list.
    """
    _check(low, high)
    if np.ndim(density) != 1:
        raise ValueError(f"density must be a list of numbers, [K], got {density!r:.80}")
    draw = _bins(density)
    width = (high - low) / len(density)

    def times(key: Array, batch: int) -> tuple[Array, Array]:
        bin_key, place_key = jax.random.split(key)
        i, weight = draw(bin_key, batch)
        return low + width * (i.astype(weight.dtype) + jax.random.uniform(place_key, (batch,), weight.dtype)), weight

    return times


@factory
def default_times(process: Process) -> TimeSampler:
    """The times of a process by default: uniform, over 1..T for a beta table, and log-normal for EDM.

    Raises:
        ValueError: the process has no noisiest time.
    """
    if isinstance(process, Discrete):
        return uniform_discrete(process.T)
    if isinstance(process, EDM):  # its time is sigma, and has no natural end to be uniform up to
        return log_normal(process)
    t_max = getattr(process, "t_max", None)
    if t_max is None:
        raise ValueError(f"{type(process).__name__} has no noisiest time of its own: give times")
    return uniform(high=t_max)


def _bins(density: Array) -> Callable[[Array, int], tuple[Array, Array]]:
    density = jnp.asarray(density)
    share = density / jnp.sum(density)

    def draw(key: Array, batch: int) -> tuple[Array, Array]:
        i = jax.random.categorical(key, jnp.log(share), shape=(batch,))
        return i, 1 / (share[i] * density.shape[0])

    return draw


def _evenly(key: Array, batch: int) -> Array:
    """Equally spaced numbers of [0, 1) with one random offset; each is uniform."""
    return (jax.random.uniform(key) + jnp.arange(batch, dtype=jnp.result_type(float)) / batch) % 1


def _normal(key: Array, batch: int, stratified: bool) -> Array:
    if not stratified:
        return jax.random.normal(key, (batch,))
    u = _evenly(key, batch)
    eps = jnp.finfo(u.dtype).eps
    return jax.scipy.special.ndtri(jnp.clip(u, eps, 1 - eps))


def _unweighted(t: Array) -> tuple[Array, Array]:
    return t, jnp.ones(t.shape, jnp.result_type(float))


def _check(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low must be below high, got low = {low}, high = {high}")
