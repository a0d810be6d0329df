"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import Level
from jaxdiff.noise import check_key
from jaxdiff.parameterize import Apply, Denoiser, Params, Row, denoiser

__all__ = ["cfg", "cfg_batched", "classifier", "drop_condition"]

Cond = Any


def cfg(cond: Denoiser, uncond: Denoiser, scale: float | Array) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6).

    The paper's w is scale - 1: here 0 is unconditional, 1 conditional, above 1 guided. Guiding x0_hat is guiding eps
    or the score, which are affine in it. A learned variance is the conditional model's.

    Args:
        cond: the conditional denoiser.
        uncond: the same network with the null condition.
        scale: a number, or [B] for one scale per example; may be traced.
    Returns:
        the guided denoiser, two evaluations a call.
    """

    def denoise(x: Array, level: Level) -> Any:
        return _guide(cond(x, level), uncond(x, level), scale)

    return denoise


def cfg_batched(apply: Apply, params: Params, row: Row, *, cond: Cond, null: Cond, scale: float | Array) -> Denoiser:
    """`cfg` with one evaluation of a doubled batch.

    Faster than two where the device is not yet full; on a sharded batch the concatenation moves data between devices,
    where `cfg` moves none.

    Args:
        apply, params, row: as for `parameterize.denoiser`.
        cond, null: conditions of like structure with leading axis B; a leaf of `null` may have leading axis 1.
        scale: as for `cfg`.
    Returns:
        the guided denoiser.
    """
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape)]), cond, null)
    both_denoise = denoiser(apply, params, row, both)

    def denoise(x: Array, level: Level) -> Any:
        twice = jax.tree.map(lambda f: f if jnp.ndim(f) == 0 else jnp.concatenate([f, f]), level)
        answer = both_denoise(jnp.concatenate([x, x]), twice)
        first, second = (jax.tree.map(op, answer) for op in (lambda a: a[: len(x)], lambda a: a[len(x) :]))
        return _guide(first, second, scale)

    return denoise


def classifier(denoise: Denoiser, log_prob: Callable[[Array, Level], Array], scale: float | Array = 1.0) -> Denoiser:
    """Classifier guidance: score + scale grad log p(y | x_t) (Dhariwal and Nichol 2021, arXiv:2105.05233, eq. 14).

    By Tweedie's formula, x0_hat + scale (sigma^2 / alpha) grad log p(y | x_t): pure noise (alpha = 0) has no guidance.

    Args:
        denoise: the denoiser to guide.
        log_prob: (x_t, level) -> [B], log p(y | x_t) of each example, of a classifier trained on noisy data.
        scale: a number, or [B]; may be traced.
    Returns:
        the guided denoiser.
    """

    def guided(x: Array, level: Level) -> Any:
        grad = jax.grad(lambda x: jnp.sum(log_prob(x, level)))(x)
        at = level.like(x)
        pull = jnp.where(at.alpha > 0, jnp.square(at.sigma) / jnp.where(at.alpha > 0, at.alpha, 1), 0)
        answer = denoise(x, level)
        step = _per_example(scale, x) * pull * grad
        return (answer[0] + step, *answer[1:]) if isinstance(answer, tuple) else answer + step

    return guided


def drop_condition(key: Array, cond: Cond, null: Cond, rate: float | Array) -> Cond:
    """Replace each example's condition by the null one with probability `rate` (Ho and Salimans 2022, algorithm 1).

    Args:
        key: one key.
        cond: pytree of [B, ...].
        null: like cond, or with leading axis 1.
        rate: in [0, 1].
    Returns:
        like cond; an example's leaves are dropped together.
    Raises:
        ValueError: cond and null differ in structure.
    """
    check_key(key)
    structures = [str(jax.tree.structure(tree)) for tree in (cond, null)]
    if structures[0] != structures[1]:
        raise ValueError(f"cond and null must have the same structure, got {structures[0]} and {structures[1]}")
    if not jax.tree.leaves(cond):
        return cond  # unconditional
    dropped = jax.random.bernoulli(key, rate, jax.tree.leaves(cond)[0].shape[:1])
    return jax.tree.map(
        lambda c, n: jnp.where(dropped.reshape((-1,) + (1,) * (c.ndim - 1)), jnp.asarray(n, c.dtype), c),
        cond,
        null,
    )


def _guide(cond: Any, uncond: Any, scale: float | Array) -> Any:
    if isinstance(uncond, tuple):
        uncond = uncond[0]
    if isinstance(cond, tuple):
        return (_guide(cond[0], uncond, scale), *cond[1:])
    return uncond + _per_example(scale, cond) * (cond - uncond)


def _per_example(scale: float | Array, x: Array) -> Array:
    scale = jnp.asarray(scale, x.dtype)
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale
