"""Parts of a grid, for starting late or stopping early."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, is_traced
from jaxdiff.levels import Level, steps_of, time_type

__all__ = ["nearest", "truncate"]


def nearest(levels: Level, level: Level) -> Array:
    """The index of the grid's level nearest to a given level in lam = log(alpha / sigma).

    For sampling that starts or stops at a level of the grid, e.g. SDEdit (Meng et al. 2021, arXiv:2108.01073) from
    x = alpha x_0 + sigma eps. To start or stop at the given level itself, see `truncate`.

    Args:
        levels: a grid, fields [N + 1].
        level: a scalar level, e.g. process(0.6); may be traced.

    Returns:
        an index in 0..N, integer.
    """
    big = jnp.finfo(jnp.asarray(levels.sigma).dtype).max / 4  # the distance between two infinite lam would be NaN
    lam, at = (jnp.clip(where.lam, -big, big) for where in (_arrays(levels), _arrays(level)))
    return jnp.argmin(jnp.abs(lam - at.astype(lam.dtype)))


@concrete
def truncate(levels: Level, *, start: Level | None = None, end: Level | None = None) -> tuple[Level, Array]:
    """The part of a grid between two levels, which become its first and last level.

    For starting from noised data or another model's x_t (truncated diffusion: Zheng et al. 2022, arXiv:2202.09671), and
    for stopping early. All arguments may be traced, since the shape is kept: the grid repeats its last level after step
    n, like grids whose number of steps is traced.

    Args:
        levels: a grid, fields [N + 1], which may repeat its last level.
        start: a scalar level, e.g. process(0.6); None, or a level noisier than the grid's first, keeps the first.
        end: a scalar level with less noise than `start`; None, or a level cleaner than the grid's last, keeps the last.

    Returns:
        (levels, fields [N + 1]; n, the number of steps from `start` to `end`, integer: `sample(..., stop=n)`).

    Raises:
        ValueError: `start` is not noisier than `end` and the grid's last level, or `end` is not cleaner than the first.
    """
    levels = _arrays(levels)
    N, lam = levels.sigma.shape[0] - 1, levels.lam
    _check_order(levels, start, end)
    first, last = jnp.asarray(0), steps_of(levels)
    if start is not None:
        start = _like(start, levels)
        passed = lam <= start.lam
        first = jnp.maximum(jnp.sum(passed) - 1, 0)
        levels = _choose(passed, start, levels)
    if end is not None:
        end = _like(end, levels)
        passed = lam >= end.lam
        last = jnp.minimum(N + 1 - jnp.sum(passed), last)
        levels = _choose(passed, end, levels)
    i = jnp.minimum(first + jnp.arange(N + 1), last)
    return levels.at(i), last - first


def _choose(mask: Array, level: Level, levels: Level) -> Level:
    t_type = time_type(levels, level)
    t = jnp.where(mask, level.t.astype(t_type), levels.t.astype(t_type))
    return Level(t, *(jnp.where(mask, new, old) for new, old in zip(level[1:], levels[1:], strict=True)))


def _arrays(level: Level) -> Level:
    return Level(*(jnp.asarray(field) for field in level))


def _like(level: Level, levels: Level) -> Level:
    """The level in a grid's type, but for its time, which may have fractions where the grid's has none."""
    alpha, sigma = jnp.asarray(level.alpha), jnp.asarray(level.sigma)
    return Level(jnp.asarray(level.t), alpha.astype(levels.alpha.dtype), sigma.astype(levels.sigma.dtype))


def _check_order(levels: Level, start: Level | None, end: Level | None) -> None:
    first, last = levels.at(0), levels.at(-1)
    pairs = [("start", start, "the grid's last level", last), ("the grid's first level", first, "end", end)]
    pairs.append(("start", start, "end", end))
    for high_name, high, low_name, low in pairs:
        if high is None or low is None or is_traced(high[1:], low[1:]):
            continue
        angles = [float(np.arctan2(level.sigma, level.alpha)) for level in (high, low)]
        if not angles[0] > angles[1]:
            raise ValueError(
                f"{high_name} must be noisier than {low_name}, got sigma / alpha "
                f"{float(high.sigma):.6g} / {float(high.alpha):.6g} and {float(low.sigma):.6g} / {float(low.alpha):.6g}"
            )
