"""Distances between a student's estimate and its target, [B, ...] each -> [B]."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Distance
from jaxdiff.levels import safe_sqrt

__all__ = ["adaptive", "norm", "perceptual", "pseudo_huber", "squared"]


def squared(a: Array, b: Array) -> Array:
    """The mean of (a - b)^2 over the dimensions, as in `losses.denoising_loss`."""
    return jnp.mean(jnp.square(a - b), axis=range(1, a.ndim))


def norm(a: Array, b: Array) -> Array:
    """|a - b|, Easy Consistency Tuning's (Geng et al. 2024, arXiv:2406.14548); its gradient is 0 where a = b."""
    return safe_sqrt(_sum(a - b))


@factory
def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(|a - b|^2 + c^2) - c, with |.|^2 a sum over D dimensions (Song and Dhariwal 2023, arXiv:2310.14189).

    Args:
        c: where the distance turns from squared to linear; None is the paper's 0.00054 sqrt(D).

    Raises:
        ValueError: c is negative.
    """
    if c is not None:
        check_number("c", c, low=0.0)

    def distance(a: Array, b: Array) -> Array:
        bend = 0.00054 * prod(a.shape[1:]) ** 0.5 if c is None else c
        return safe_sqrt(_sum(a - b) + bend**2) - bend

    return distance


@factory
def adaptive(p: float = 1.0, c: float = 0.01) -> Distance:
    """|a - b|^2 / sg(|a - b|^2 + c)^p, |.|^2 a sum over the dimensions (Geng et al. 2025, arXiv:2505.13447).

    Args:
        p: 0 is the squared distance, 1/2 is close to pseudo-Huber's, 1 makes all gradients equally long.
        c: keeps the weight finite; with 0 the distance is 0 where a = b.

    Raises:
        ValueError: p is outside [0, 1], or c is negative.
    """
    check_number("p", p, low=0.0, high=1.0)
    check_number("c", c, low=0.0)

    def distance(a: Array, b: Array) -> Array:
        square = _sum(a - b)
        size = jax.lax.stop_gradient(square + c)
        return square / jnp.where(size > 0, size, 1) ** p

    return distance


@factory
def perceptual(features: Callable[[Array], Any]) -> Distance:
    """The distance of a network's features, of unit length at each place (Zhang et al. 2018, arXiv:1801.03924, eq. 1).

    Args:
        features: [B, ...] -> a tree of arrays [B, ..., C], e.g. the inner layers of a classifier.

    Raises:
        ValueError: `features` is not a function.
    """
    check_function("features", features, "(x) -> features")

    def distance(a: Array, b: Array) -> Array:
        each = jax.tree.map(_of_directions, features(a), features(b))
        return jnp.sum(jnp.stack(jax.tree.leaves(each)), axis=0)

    return distance


def _of_directions(a: Array, b: Array) -> Array:
    unit = lambda h: h / (safe_sqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True)) + 1e-10)  # noqa: E731
    square = jnp.sum(jnp.square(unit(a) - unit(b)), axis=-1)
    return jnp.mean(square, axis=range(1, square.ndim))


def _sum(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=range(1, x.ndim))
