"""A part of a grid: starting late, stopping early."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, is_traced
from jaxdiff.levels import Level

__all__ = ["nearest", "truncate"]


def nearest(levels: Level, level: Level) -> Array:
    """The index of the grid's level that is nearest to a level in lam = log(alpha / sigma).

    A run that starts there or stops there takes whole steps of the grid: the editing of Meng et al. 2021 (SDEdit,
    arXiv:2108.01073) from x = alpha x_0 + sigma eps. For the level itself, in place of a neighbour, see `truncate`.

    Args:
        levels: a grid, fields [N + 1].
        level: a scalar level, for instance process(0.6); may be traced.

    Returns:
        an index in 0..N, integer.
    """
    big = jnp.finfo(jnp.asarray(levels.sigma).dtype).max / 4  # an end at lam = inf is near to another one
    lam, at = (jnp.clip(where.lam, -big, big) for where in (_arrays(levels), _arrays(level)))
    return jnp.argmin(jnp.abs(lam - at.astype(lam.dtype)))


@concrete
def truncate(levels: Level, *, start: Level | None = None, end: Level | None = None) -> tuple[Level, Array]:
    """The part of a grid between two levels, which become its first and its last.

    For starting late from noised data or from another model's x_t (truncated diffusion: Zheng et al. 2022,
    arXiv:2202.09671), and for stopping early. All may be traced, since the shape stays: the grid repeats its last level
    after step n, like the grids whose number of steps is traced.

    Args:
        levels: a grid, fields [N + 1].
        start: a scalar level, for instance process(0.6); None or one noisier than the grid's first leaves that first.
        end: a scalar level with less noise than `start`; None or one cleaner than the grid's last leaves that last.

    Returns:
        (levels, fields [N + 1]; n, the number of steps from `start` to `end`, integer: `sample(..., stop=n)`).

    Raises:
        ValueError: `start` not noisier than `end` and the grid's last level, or `end` not cleaner than its first.
    """
    levels = _arrays(levels)
    N, lam = levels.sigma.shape[0] - 1, levels.lam
    _check_order(levels, start, end)
    first, last = jnp.asarray(0), jnp.asarray(N)
    if start is not None:
        start = _like(start, levels)
        passed = lam <= start.lam
        first = jnp.maximum(jnp.sum(passed) - 1, 0)
        levels = _choose(passed, start, levels)
    if end is not None:
        end = _like(end, levels)
        passed = lam >= end.lam
        last = jnp.minimum(N + 1 - jnp.sum(passed), N)
        levels = _choose(passed, end, levels)
    i = jnp.minimum(first + jnp.arange(N + 1), last)
    return levels.at(i), last - first


def _choose(mask: Array, level: Level, levels: Level) -> Level:
    return Level(*(jnp.where(mask, one, field) for one, field in zip(level, levels, strict=True)))


def _arrays(level: Level) -> Level:
    return Level(*(jnp.asarray(field) for field in level))


def _like(level: Level, levels: Level) -> Level:
    return Level(*(jnp.asarray(one).astype(field.dtype) for one, field in zip(level, levels, strict=True)))


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
