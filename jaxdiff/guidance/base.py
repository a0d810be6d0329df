"""Shared by guidance functions: scales by level, outputs with a learned variance, checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_denoiser
from jaxdiff.levels import Level, append_axes, safe_sqrt

__all__ = [
    "Scale",
    "check_denoisers",
    "guide",
    "join_variance",
    "norm",
    "per_example",
    "scale_at",
    "sigma_ratio",
    "split_variance",
    "sum_of_examples",
]

Scale = float | Array | Callable[[Level], float | Array]  # a number, [B], or a function of the level that returns one


def scale_at(scale: Scale, x: Array, level: Level) -> Array:
    """The scale at a level, in the dtype of x, with axes appended until it broadcasts against x.

    Args:
        scale: a number, [B], or a function of the level.
        x: [B, ...].
        level: scalar or [B].

    Raises:
        ValueError: a shape other than () and [B].
    """
    return per_example("a scale", scale(level) if callable(scale) else scale, x)


def per_example(name: str, value: float | Array, x: Array) -> Array:
    """A number, or one of each example, in the dtype of x, with axes appended until it broadcasts against x.

    Args:
        name: what it is called in the message.
        value: a number or [B].
        x: [B, ...].

    Raises:
        ValueError: a shape other than () and [B].
    """
    value = jnp.asarray(value, x.dtype)
    if value.ndim > x.ndim or any(n not in (1, m) for n, m in zip(value.shape, x.shape, strict=False)):
        raise ValueError(f"{name} is a number or one for each of {len(x)} examples, got shape {value.shape}")
    return append_axes(value, x.ndim)


def guide(cond: Any, uncond: Any, scale: Array) -> Any:
    """uncond + scale (cond - uncond), of two outputs of denoisers; a learned variance is that of `cond`."""
    x0, *variance = split_variance(cond)
    other = split_variance(uncond)[0]
    return join_variance(other + scale * (x0 - other), *variance)


def split_variance(output: Any) -> tuple[Array, ...]:
    """A denoiser's output as a tuple, (x0_hat,) or (x0_hat, frac)."""
    return output if isinstance(output, tuple) else (output,)


def join_variance(x0: Array, *variance: Array) -> Any:
    """The inverse of `split_variance`."""
    return (x0, *variance) if variance else x0


def sigma_ratio(level: Level) -> Array:
    """sigma / alpha, inf at pure noise with gradient 0 there."""
    noise_only = level.alpha == 0
    return jnp.where(noise_only, jnp.inf, level.sigma / jnp.where(noise_only, 1, level.alpha))


def norm(x: Array) -> Array:
    """The Euclidean norm of each example, [B, 1, ...]; gradient 0 at 0."""
    return safe_sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def sum_of_examples(name: str, values: Array, x: Array) -> Array:
    """The sum of one number for each example, whose gradient is that of each alone.

    Raises:
        ValueError: `values`, returned by the function of this name, is not [B]; a mean over the batch would make
            guidance weaker in larger batches.
    """
    if jnp.shape(values) != x.shape[:1]:
        raise ValueError(f"{name} must return one number for each example, [{len(x)}], got {list(jnp.shape(values))}")
    return jnp.sum(values)


def check_denoisers(**denoisers: Any) -> None:
    """Raise ValueError unless each has the signature of a denoiser."""
    for name, denoise in denoisers.items():
        if denoise is None:
            raise ValueError(
                f"{name} must be a denoiser (x, level) -> x0_hat, got None; a model that was never trained "
                "without its condition can be guided by classifier, autoguidance or perturbed_attention"
            )
        check_denoiser(name, denoise)
