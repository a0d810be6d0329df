"""Pairs of times for consistency losses, and the schedules of the published recipes.

The noise of a level is its sigma / alpha, the sigma of the papers, so that a recipe is the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, concrete, describe, factory, is_traced
from jaxdiff.distill.base import TimePairs
from jaxdiff.grids.base import check_decreasing, ramp
from jaxdiff.grids.sigma import from_sigma_over_alpha
from jaxdiff.levels import Level, check_grid, safe_log
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.schema import integer

__all__ = ["Grid", "ct_decay", "ct_grid", "ect_pairs", "grid_pairs", "ict_grid", "log_normal_pairs"]

Grid = Level | Callable[[Array], Level]  # a grid, or the grid of an update: (int32 step) -> levels, of a fixed length


@factory
def grid_pairs(process: Process, levels: Grid) -> TimePairs:
    """Neighbours on a grid, each pair equally often (Song et al. 2023, arXiv:2303.01469, algorithms 2 and 3).

    Consistency distillation takes `grids.karras(process, 18, sigma_min=0.002, sigma_max=80.0)`, latent consistency
    models a grid of a beta table, consistency training `ct_grid`.

    Args:
        process: the process of the loss; needs `time`.
        levels: a grid, fields [N + 1], noisiest first; or a function of the step that returns one. It may repeat its
            clean end, which counts once.

    Returns:
        (key, B, step) -> (t, s, 1).

    Raises:
        ValueError: not a grid, or it ends at clean data and the process at noise.
    """
    at = _at(process, levels)

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        grid = at(step)
        i = jax.random.randint(key, (batch,), 0, _steps(grid))
        return grid.t[i], grid.t[i + 1], jnp.ones(batch, grid.sigma.dtype)

    pairs.first = _first(process, at)  # type: ignore[attr-defined]
    return pairs


@factory
def log_normal_pairs(process: Process, levels: Grid, *, mean: float = -1.1, std: float = 2.0) -> TimePairs:
    """Neighbours on a grid, weighted by 1 / (sigma_t - sigma_s), at log-normal noise (Song and Dhariwal 2023).

    arXiv:2310.14189: a pair's probability is that of log sigma ~ N(mean, std^2) between its two levels, in the range of
    the grid.

    Args:
        process: the process of the loss; needs `time`.
        levels: as for `grid_pairs`; the paper's is `ict_grid`.
        mean, std: the paper's P_mean and P_std.

    Returns:
        (key, B, step) -> (t, s, weight).

    Raises:
        ValueError: as for `grid_pairs`, or std <= 0.
    """
    at = _at(process, levels)
    check_number("mean", mean)
    _check_positive("std", std)

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        grid = at(step)
        lam = grid.lam.astype(jnp.result_type(float))
        # The bin of a truncated normal, which needs no table of probabilities.
        low, high = (-lam[-1] - mean) / std, (-lam[0] - mean) / std
        z = mean + std * jax.random.truncated_normal(key, low, high, (batch,), lam.dtype)
        i = jnp.clip(jnp.sum(-lam[None] > z[:, None], axis=1) - 1, 0, _steps(grid) - 1)
        sigma = jnp.exp(-lam)
        return grid.t[i], grid.t[i + 1], 1 / (sigma[i] - sigma[i + 1])

    pairs.first = _first(process, at)  # type: ignore[attr-defined]
    return pairs


@factory
def ect_pairs(
    process: Process,
    *,
    steps: int,
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
) -> TimePairs:
    """Easy Consistency Tuning's pairs: log-normal t, and s approaches it in stages (Geng et al. 2024).

    arXiv:2406.14548: s = t (1 - n(t) / q^(stage + 1)) in sigma / alpha, or clean data where that is negative, with n(t)
    = 1 + k logistic(-b t), and the weight 1 / (t - s). The first stage is close to denoising. The paper's short recipe
    is a single stage with q = 256.

    Args:
        process: the process of the loss; needs `time`.
        steps: number of updates in the run; the last stage stays after them.
        stages: number of stages of equal length.
        q: how much closer s is in the next stage, > 1.
        k, b: how much farther s is at low noise, and where.
        mean, std: log(sigma / alpha) of t is N(mean, std^2).

    Returns:
        (key, B, step) -> (t, s, weight).

    Raises:
        ValueError: fewer steps than stages or no stage, q <= 1, k < 0, std <= 0, or a process that ends at noise.
    """
    check_process(process, "time")
    steps, stages = integer("steps", steps, 1), integer("stages", stages, 1)
    if stages > steps:
        raise ValueError(f"a run has at least one update for each stage, got stages = {stages}, steps = {steps}")
    if not q > 1:
        raise ValueError(f"q, the ratio of two stages, must be greater than 1, got {q}")
    check_number("k", k, low=0.0)
    check_number("b", b)
    check_number("mean", mean)
    _check_positive("std", std)
    _check_clean(process)

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        stage = jnp.minimum(step * stages // steps, stages - 1)
        t = jnp.exp(mean + std * jax.random.normal(key, (batch,)))
        share = (1 + k * jax.nn.sigmoid(-b * t)) / q ** (stage + 1).astype(t.dtype)
        s = jnp.maximum(t * (1 - share), 0)
        time = lambda sigma: process.time(-safe_log(sigma))  # noqa: E731
        return time(t), time(s), 1 / (t * jnp.minimum(share, 1))

    return pairs


@factory
def ct_grid(
    process: Process,
    steps: int,
    *,
    s0: int = 2,
    s1: int = 150,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Callable[[Array], Level]:
    """The grid of consistency training, which grows from s0 to s1 + 1 levels (Song et al. 2023, arXiv:2303.01469).

    N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 levels of Karras et al. 2022, eq. 5, of which the last,
    sigma_min, is clean data here, where f(x, 0) = x.

    Args:
        process: the process; needs `time`.
        steps: K, number of updates in the run.
        s0, s1: the paper's numbers of steps at the beginning and at the end.
        sigma_min, sigma_max: sigma / alpha of the levels N and 1.
        rho: larger values give more steps at low noise.

    Returns:
        (step) -> levels, fields [s1 + 1]; the clean end is repeated.

    Raises:
        ValueError: steps < 1, not 2 <= s0 <= s1, or sigma_min >= sigma_max or <= 0.
    """
    _check_sizes(steps, s0, s1)
    grid = _karras(process, s1, sigma_min, sigma_max, rho)
    return lambda step: grid(_ct_levels(step, steps, s0, s1) - 1)


@factory
def ct_decay(steps: int, *, mu0: float = 0.9, s0: int = 2, s1: int = 150) -> Callable[[Array], Array]:
    """Decay of consistency training's target, mu(k) = exp(s0 log(mu0) / N(k)), for `train.make_step(ema=...)`.

    Song et al. 2023, arXiv:2303.01469; N(k) as for `ct_grid`.

    Args:
        steps: K, number of updates in the run.
        mu0: decay at the beginning, in (0, 1).
        s0, s1: as for `ct_grid`.

    Returns:
        (step) -> float32 decay.

    Raises:
        ValueError: mu0 outside (0, 1), steps < 1, or not 2 <= s0 <= s1.
    """
    _check_sizes(steps, s0, s1)
    if not 0 < mu0 < 1:
        raise ValueError(f"mu0, the decay at the beginning, must be between 0 and 1, got {mu0}")
    return lambda step: mu0 ** (s0 / _ct_levels(step, steps, s0, s1).astype(jnp.float32))


@factory
def ict_grid(
    process: Process,
    steps: int,
    *,
    s0: int = 10,
    s1: int = 1280,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Callable[[Array], Level]:
    """The grid of improved consistency training, whose steps double (Song and Dhariwal 2023, arXiv:2310.14189).

    N(k) = min(s0 2^floor(k / K'), s1) + 1 levels, K' = floor(K / (log2 floor(s1 / s0) + 1)); the rest is as for
    `ct_grid`.

    Args:
        process: the process; needs `time`.
        steps: K, number of updates in the run.
        s0, s1: numbers of steps at the beginning and at the end.
        sigma_min, sigma_max, rho: as for `ct_grid`.

    Returns:
        (step) -> levels, fields [s1 + 1]; the clean end is repeated.

    Raises:
        ValueError: fewer updates than stages, not 2 <= s0 <= s1, or sigma_min >= sigma_max or <= 0.
    """
    _check_sizes(steps, s0, s1)
    length = int(steps / (log2(s1 // s0) + 1))
    if length < 1:
        raise ValueError(f"from s0 = {s0} to s1 = {s1} steps a grid has more stages than steps = {steps} updates")
    grid = _karras(process, s1, sigma_min, sigma_max, rho)

    def levels(step: Array) -> Level:
        doublings = jnp.minimum(step // length, 30).astype(jnp.float32)  # s0 2^30 is above any s1, and finite
        return grid(jnp.minimum(s0 * jnp.exp2(doublings), s1).astype(jnp.int32))

    return levels


def _karras(process: Process, size: int, sigma_min: float, sigma_max: float, rho: float) -> Callable[[Array], Level]:
    """(n) -> n <= size steps of the grid of n + 1 levels whose last is clean data for sigma_min, fields [size + 1]."""
    check_process(process, "time")
    check_decreasing("sigma_max", sigma_max, "sigma_min", sigma_min, positive=True)
    _check_positive("rho", rho)

    def grid(n: Array) -> Level:
        sigma = ramp(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n, size)[:size] ** rho
        return from_sigma_over_alpha(process, sigma, n)

    return grid


def _ct_levels(step: Array, steps: int, s0: int, s1: int) -> Array:
    share = jnp.minimum(step, steps).astype(jnp.float32) / steps
    return jnp.ceil(jnp.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1).astype(jnp.int32) + 1


def _at(process: Process, levels: Grid) -> Callable[[Array], Level]:
    check_process(process, "time")
    grid = levels if callable(levels) else lambda step: levels
    check_grid(jax.eval_shape(grid, jax.ShapeDtypeStruct((), jnp.int32)))
    _check_clean(process, grid)

    def at(step: Array) -> Level:
        t, alpha, sigma = (jnp.asarray(field) for field in grid(step))
        # A grid's clean level has the time 0, at which some processes have noise: VE.
        clean = process.time(jnp.asarray(jnp.inf, float)).astype(t.dtype)
        return Level(jnp.where(sigma == 0, clean, t), alpha, sigma)

    return at


@concrete
def _check_clean(process: Process, grid: Callable[[Array], Level] | None = None) -> None:
    """Raise ValueError for clean data of a process with noise at all times: f(x, 0) = x would never be a target."""
    sigma = process(process.time(jnp.asarray(jnp.inf, float))).sigma
    last = jnp.zeros(()) if grid is None else jnp.asarray(grid(jnp.asarray(0, jnp.int32)).sigma)[-1]
    if not is_traced(sigma, last) and last == 0 and sigma > 0:
        raise ValueError(f"clean data has no time in {describe(process)}, whose cleanest has sigma = {sigma:.4g}")


@concrete
def _first(process: Process, at: Callable[[Array], Level]) -> Level:
    """The noisiest level that is drawn, for `check_first`."""
    return process(at(jnp.asarray(0, jnp.int32)).t[0])


def _steps(levels: Level) -> Array:
    """The number of steps of a grid that may repeat its clean end."""
    return jnp.minimum(jnp.sum(levels.sigma > 0, dtype=jnp.int32), levels.sigma.shape[0] - 1)


def _check_sizes(steps: int, s0: int, s1: int) -> None:
    if steps < 1 or not 2 <= s0 <= s1:
        raise ValueError(
            f"a grid that grows needs steps >= 1 updates and 2 <= s0 <= s1, got steps = {steps}, s0 = {s0}, s1 = {s1}"
        )


def _check_positive(name: str, value: float) -> None:
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
