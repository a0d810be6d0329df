"""The protocol of a process, and code that several processes share."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, describe
from jaxdiff.levels import Level, safe_sqrt

__all__ = ["AutodiffSDE", "Process", "UnitTime", "check_process", "time_range", "to_float", "vp_level"]


class Process(Protocol):
    """A forward process, as a function from times to levels.

    Two more attributes are optional, as in the subclasses of `UnitTime`: `t_max`, the noisiest time, and `t_min`, the
    cleanest. They are the defaults of grids; losses use `t_max` only. To pass a process to `jit`, make it a pytree,
    e.g. by `jax.tree_util.register_dataclass`.
    """

    def __call__(self, t: Array) -> Level:
        """The level at time t."""
        ...

    def time(self, lam: Array) -> Array:
        """The time at which log(alpha / sigma) = lam."""
        ...

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of the forward SDE dx = f x dt + g dw at time t."""
        ...


class UnitTime:
    """The range of times [0, 1], from data to noise."""

    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0


class AutodiffSDE:
    """`sde` by differentiating alpha and sigma: f = alpha'/alpha, g^2 = (sigma^2)' - 2 f sigma^2."""

    def sde(self, t: Array) -> tuple[Array, Array]:
        """(f, g) of dx = f x dt + g dw, at a time t between the ends (Song et al. 2020, arXiv:2011.13456, eq. 5)."""
        t = to_float(t)
        level, slope = jax.jvp(self, (t,), (jnp.ones_like(t),))  # type: ignore[arg-type]
        f = slope.alpha / level.alpha
        return f, jnp.sqrt(2 * level.sigma * (slope.sigma - f * level.sigma))


def check_process(process: Any, *methods: str) -> None:
    """Raise ValueError unless `process` is a function, not a class, and has the methods."""
    check_function("process", process, "(t) -> Level, as those of jaxdiff.processes")
    for method in methods:
        if not hasattr(process, method):
            raise ValueError(f"{describe(process)} has no method `{method}`, which a process needs here: see Process")


def time_range(process: Process, start: Any = None, end: Any = None) -> tuple[Any, Any]:
    """The first and the last time of a grid: the arguments, or by default the process's own.

    Args:
        process: any.
        start, end: the noisiest and the cleanest time; None is the process's own.

    Returns:
        (start, end).

    Raises:
        ValueError: no start or end for a process without one.
    """
    check_process(process)
    start = getattr(process, "t_max", None) if start is None else start
    end = getattr(process, "t_min", None) if end is None else end
    for name, value, what in (("start", start, "noisiest"), ("end", end, "cleanest")):
        if value is None:
            raise ValueError(f"{type(process).__name__} has no {what} time of its own: give {name}, in its time")
    return start, end


def vp_level(t: Array, lam: Array) -> Level:
    """The variance-preserving level with lam = log(alpha / sigma): alpha^2 = logistic(2 lam)."""
    return Level(t, safe_sqrt(jax.nn.sigmoid(2 * lam)), safe_sqrt(jax.nn.sigmoid(-2 * lam)))


def to_float(t: Array) -> Array:
    """Convert integer times to float, as strict dtype promotion needs; floating dtypes are kept."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))
