"""Shared by the methods: what was measured and how it is checked, Tweedie's factor, a denoiser with its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_number, describe, is_traced
from jaxdiff.guidance.base import per_example, split_variance
from jaxdiff.inverse.operators.base import Operator
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser

__all__ = ["check_operator", "check_std", "jacobian", "measure", "tweedie_factor", "variance_of"]


def check_operator(operator: Any, y: Any) -> None:
    """Raise ValueError unless `operator` is an Operator, and y a finite array that is 0 where that measures nothing."""
    if not isinstance(operator, Operator):
        raise ValueError(f"operator must be an Operator, as inverse.operators make them, got {describe(operator)}")
    if not isinstance(y, Array | np.ndarray) or not jnp.issubdtype(y.dtype, jnp.inexact):
        raise ValueError(f"y must be an array of floating-point or complex numbers, got {describe(y)}")
    value, measured = _value(y), _value(operator.measured)
    if value is not None and not np.all(np.isfinite(value)):
        raise ValueError("y must be finite, and 0 where nothing is measured; it has entries that are NaN or infinite")
    if value is not None and measured is not None:
        measured = measured if measured.ndim == y.ndim else measured[None]
        try:
            outside = np.any(np.where(measured != 0, 0, value))
        except ValueError:
            raise ValueError(f"y of shape {list(y.shape)} has another shape than the mask, {measured.shape}") from None
        if outside:
            raise ValueError("y must be 0 where nothing is measured: operator.apply(x), and noise at the known entries")


def check_std(std: Any, *, positive: bool = False) -> None:
    """Raise ValueError unless std, if it is not traced, is finite and not negative; not 0 either if `positive`."""
    value = _value(std)
    check_number("std", std if value is None else value, low=0)
    if positive and value is not None and np.any(value == 0):
        raise ValueError("std must be positive, got 0: without noise, use ddnm, or replace around a solver")


def _value(a: Any) -> np.ndarray | None:
    """A number or an array in NumPy; None if there is none, or it is traced, or lies with other processes as well."""
    if a is None or callable(a) or is_traced(a) or (isinstance(a, Array) and not a.is_fully_addressable):
        return None
    return np.asarray(a)


def measure(operator: Operator, y: Array, x: Array) -> Array:
    """A x, with a check of y against it.

    Raises:
        ValueError: y has another shape than A x.
    """
    measured = operator.apply(x)
    if measured.shape != y.shape:
        raise ValueError(
            f"the operator makes measurements of shape {list(measured.shape)} from x of shape {list(x.shape)}, got y "
            f"of shape {list(y.shape)}"
        )
    return measured


def variance_of(std: float | Array, y: Array) -> Array:
    """std^2, a number or one an example, that broadcasts against y."""
    return jnp.square(per_example("std", std, y.real))


def tweedie_factor(x: Array, level: Level) -> Array:
    """sigma^2 / alpha, by which a score moves x0_hat; 0 at pure noise, where x says nothing of x_0."""
    at = level.expand_to(x)
    pure = at.alpha == 0
    return jnp.where(pure, 0, jnp.square(at.sigma) / jnp.where(pure, 1, at.alpha))


def jacobian(denoise: Denoiser, x: Array, level: Level) -> tuple[Array, tuple[Array, ...], Callable[[Array], Array]]:
    """x0_hat, its learned variance as a tuple (empty if there is none), and u -> J^T u with J = d x0_hat / d x_t."""

    def first(x: Array):
        x0, *variance = split_variance(denoise(x, level))
        return x0, tuple(variance)

    x0, pull, variance = jax.vjp(first, x, has_aux=True)
    return x0, variance, lambda u: pull(u)[0]
