"""Checks of arguments, run when a function is called or traced; compiled programs contain none of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "check_called",
    "check_denoiser",
    "check_function",
    "check_inexact",
    "check_number",
    "concrete",
    "describe",
    "factory",
    "is_traced",
]

P = ParamSpec("P")
R = TypeVar("R")


def is_traced(*trees: Any) -> bool:
    """Whether a leaf of the trees is traced, so that its value cannot be checked."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def concrete(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that concrete arguments give a concrete result, also inside `jit`.

    Inside `jit` even operations on constants are traced, so that values could not be checked. The decorated function
    evaluates them as outside of `jit`, to the same bits; `jax.ensure_compile_time_eval` evaluates the parts of jnp's
    functions and rounds differently. Traced arguments are traced as usual.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not is_traced(args, kwargs):
            try:
                with jax.core.eval_context():
                    return function(*args, **kwargs)
            except jax.errors.UnexpectedTracerError:
                pass  # an argument holds a tracer that is not a leaf, e.g. a process that is not a pytree
        return function(*args, **kwargs)

    return call


def factory(make: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that makes functions, so that results are named after the call and checks detect a missing call.

    The name, such as `edm(0.5)`, is the `__qualname__` of the resulting function, or of a solver's step. No argument of
    a factory may be a factory itself.
    """
    signature = inspect.signature(make)

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result = make(*args, **kwargs)  # its own sentences come first
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_called(name, value)
        arguments = [describe(value) for value in args] + [f"{k}={describe(v)}" for k, v in kwargs.items()]
        function: Any = getattr(result, "step", result)  # a solver's step
        function.__qualname__ = f"{make.__name__}({', '.join(arguments)})"
        return result

    call.is_factory = True  # type: ignore[attr-defined]
    return call


def describe(value: Any) -> str:
    """Describe a value for names and messages: an array by dtype and shape, a function by name."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__
    if type(value) in (tuple, list) and value:
        return f"{type(value).__name__} of {', '.join(describe(part) for part in value[:3])}"
    unnamed = type(value).__repr__ is object.__repr__
    if unnamed or (is_dataclass(value) and not isinstance(value, type)):
        return type(value).__name__  # the arrays of a process are long
    name = getattr(value, "__qualname__", None)
    return name.replace("<locals>.", "") if name else f"{value!r:.80}"


def check_called(name: str, value: Any) -> None:
    """Raise ValueError for a factory that was not called."""
    if getattr(value, "is_factory", False):
        raise ValueError(f"{name} is {value.__name__}, which is a factory: call {value.__name__}()")


def check_function(name: str, value: Any, signature: str) -> None:
    """Raise ValueError unless `value` is a function with this signature, and not a factory that was not called.

    Args:
        name: name of the argument.
        value: the argument.
        signature: the expected signature, e.g. "(x, level) -> x0_hat".
    """
    what = f"{name} must be a function {signature}, got {describe(value)}"
    check_called(name, value)
    if isinstance(value, type):
        raise ValueError(f"{name} is the class {value.__name__}: call {value.__name__}()")
    if not callable(value):
        raise ValueError(what)
    try:
        takes = inspect.signature(value)
    except (TypeError, ValueError):
        return  # a builtin has no signature
    try:
        takes.bind(*signature.split(")")[0].split(","))
    except TypeError:
        raise ValueError(f"{what}, which takes {takes}") from None


def check_denoiser(name: str, value: Any, *, next_level: bool = False) -> None:
    """Raise ValueError unless `value` has the signature of a denoiser, or of one that also takes the next level."""
    try:
        check_function(name, value, "(x, cur, nxt) -> x0_hat" if next_level else "(x, level) -> x0_hat")
    except ValueError as error:
        raise ValueError(f"{error}; a network becomes a denoiser by jd.denoiser(apply, params, prediction)") from None


def check_inexact(name: str, x: Any) -> None:
    """Raise ValueError unless x is an array of floating-point numbers."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise ValueError(f"{name} must be an array of floating-point numbers, got {describe(x)}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be an array of floating-point numbers, got {dtype}: bytes of pictures become numbers in "
            "[-1, 1] by data.to_float"
        )


def check_number(name: str, value: Any, *, low: float = -np.inf, high: float = np.inf) -> None:
    """Raise ValueError unless a number or NumPy array is finite and in [low, high]; JAX arrays and functions pass."""
    if callable(value) or isinstance(value, Array):
        return
    bounds = "" if low == -np.inf and high == np.inf else f" in [{low:g}, {high:g}]"
    try:
        if isinstance(value, str):
            raise TypeError
        number = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a finite number{bounds}, got {value!r:.80}") from None
    if not np.all(np.isfinite(number) & (low <= number) & (number <= high)):
        raise ValueError(f"{name} must be a finite number{bounds}, got {value}")
