"""Classifier-free guidance, and condition dropout for its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, guide, scale_at
from jaxdiff.levels import Level, append_axes
from jaxdiff.noise import check_key
from jaxdiff.parameterize import denoiser
from jaxdiff.types import Apply, Cond, Denoiser, Params, Prediction

__all__ = ["cfg", "cfg_batched", "drop_condition"]


def cfg(cond: Denoiser, uncond: Denoiser, scale: Scale) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6).

    scale is the paper's w + 1: 0 is unconditional, 1 conditional, above 1 guided. eps and the score are affine in
    x0_hat, so guiding x0_hat is guiding them. A learned variance is the conditional model's. The scale may be a
    function of the level, e.g. `lambda level: 1 + 4 * level.sigma`.

    Args:
        cond: the conditional denoiser.
        uncond: the same network with the null condition.
        scale: a number, or [B] for one scale per example, or a function of the level that returns one; may be traced.

    Returns:
        the guided denoiser, two evaluations per call.

    Raises:
        ValueError: no unconditional denoiser, or a scale that is not finite or has another shape.
    """
    check_denoisers(cond=cond, uncond=uncond)
    check_number("scale", scale)

    def denoise(x: Array, level: Level) -> Any:
        return guide(cond(x, level), uncond(x, level), scale_at(scale, x, level))

    return denoise


def cfg_batched(
    apply: Apply, params: Params, prediction: Prediction, *, cond: Cond, null_cond: Cond, scale: Scale
) -> Denoiser:
    """`cfg` with one evaluation of a doubled batch.

    Faster than two evaluations if they do not fill the device. An example's two lie next to each other, so that a
    sharded batch stays where it is, and halves of the batch stay halves, as `networks.control_attention` needs them.

    Args:
        apply, params, prediction: as for `parameterize.denoiser`.
        cond, null_cond: conditions of the same structure with leading axis B; leaves of `null_cond` may have leading
            axis 1.
        scale: as for `cfg`.

    Returns:
        the guided denoiser.

    Raises:
        ValueError: an empty condition, conditions that differ in structure, or a scale as for `cfg`.
    """
    _check_same_structure(cond, null_cond)
    if not jax.tree.leaves(cond):
        raise ValueError(
            f"guidance needs a condition and a null condition, got {cond!r} and {null_cond!r}: "
            "use denoiser without guidance"
        )
    check_number("scale", scale)
    both = jax.tree.map(lambda c, n: _pairs(c, jnp.broadcast_to(n, c.shape)), cond, null_cond)
    both_denoise = denoiser(apply, params, prediction, both)

    def denoise(x: Array, level: Level) -> Any:
        twice = jax.tree.map(lambda f: f if jnp.ndim(f) == 0 else _pairs(f, f), level)
        output = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), both_denoise(_pairs(x, x), twice))
        first, second = (jax.tree.map(lambda a, i=i: a[:, i], output) for i in range(2))
        return guide(first, second, scale_at(scale, x, level))

    return denoise


def _pairs(a: Array, b: Array) -> Array:
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def drop_condition(key: Array, cond: Cond, null_cond: Cond, rate: float | Array) -> Cond:
    """Replace each example's condition by `null_cond` with probability `rate` (Ho and Salimans 2022, algorithm 1).

    Args:
        key: one key.
        cond: pytree of [B, ...].
        null_cond: like cond, or with leading axis 1; of a dict also some of its entries, and the others are kept.
        rate: probability, in [0, 1].

    Returns:
        like cond; an example's leaves are dropped together.

    Raises:
        ValueError: cond and null_cond differ in structure.
    """
    check_key(key)
    kept: Cond = {}
    if isinstance(cond, Mapping) and isinstance(null_cond, Mapping) and null_cond:
        kept = {name: value for name, value in cond.items() if name not in null_cond}
        cond = {name: value for name, value in cond.items() if name in null_cond}
    _check_same_structure(cond, null_cond)
    if not jax.tree.leaves(cond):
        return cond  # unconditional
    dropped = jax.random.bernoulli(key, rate, jax.tree.leaves(cond)[0].shape[:1])
    replaced = jax.tree.map(
        lambda c, n: jnp.where(append_axes(dropped, c.ndim), jnp.asarray(n, c.dtype), c),
        cond,
        null_cond,
    )
    return replaced | kept if kept else replaced


def _check_same_structure(cond: Cond, null_cond: Cond) -> None:
    structures = [str(jax.tree.structure(tree)) for tree in (cond, null_cond)]
    if structures[0] != structures[1]:
        raise ValueError(f"cond and null_cond must have the same structure, got {structures[0]} and {structures[1]}")
