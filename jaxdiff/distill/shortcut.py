"""Shortcut models (Frans et al. 2024): a network that steps by any power of 2, trained with its own half steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Context, Guided, TimePairs, like_null, null_of, split_inputs
from jaxdiff.distill.distances import squared
from jaxdiff.distill.jumps import average, check, draw, two_jumps, two_time_denoiser
from jaxdiff.guidance import drop_condition
from jaxdiff.levels import Level, append_axes
from jaxdiff.parameterize import target
from jaxdiff.processes.base import Process, time_range
from jaxdiff.types import Apply, Batch, FlowMap, Loss, Metrics, Params, Prediction

__all__ = ["shortcut"]


@factory
def shortcut(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    steps: int = 128,
    share: float = 0.25,
    guide: Guided | None = None,
    null_cond: Any = None,
    cond_dropout: float = 0.0,
    dropout: bool = False,
) -> Loss:
    """Flow matching at the smallest step 1/N, and two half steps as the target of all others.

    Frans et al. 2024, arXiv:2410.12557. A step d is 2^-k of the process's times, from a multiple of itself. Each
    example is drawn on its own: with probability `share` a d > 1/N, all equally likely, whose target is made of two
    steps d/2 by the average of the parameters; else d = 1/N with the data as target, as in `losses.denoising_loss`.
    What the jumps approach are the N Euler steps of the model. Draw with `solvers.flow_map` and 1, 2, 4, ..., N equal
    steps.

    The average is evaluated for all examples, so that a sharded batch stays where it is.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F, which is given cond["next_noise"].
        process: any with a noisiest time; the paper's is `processes.Flow()`.
        prediction: any; the paper's is `velocity`.
        steps: N, a power of 2.
        share: probability that an example has a d > 1/N.
        guide: (conditional, unconditional denoiser) -> denoiser, the guidance of the two steps of 1/N, which larger
            steps inherit, e.g. `lambda c, u: guidance.cfg(c, u, 2.0)`; None: no guidance.
        null_cond: the null condition, for `guide` and `cond_dropout`: like the condition, with leading axis 1; or
            context -> it, as for `teacher`.
        cond_dropout: probability of replacing an example's condition by the null condition, where d = 1/N.
        dropout: whether the network takes `key=` for dropout; all calls have the same mask.

    Returns:
        the loss of ((params, Context), key, batch), a mean over batch and dimensions, for a step made with
        `given=distill.context(ema=True)`; metrics: "flow_mse" at d = 1/N and "shortcut_mse", of F.

    Raises:
        ValueError: steps is no power of 2 above 1, share or cond_dropout lies outside [0, 1], the null condition is
            missing, a process has no noisiest time; from the loss, there is no average.
    """
    _check(steps, share, null_cond, guide, cond_dropout)
    start, end = time_range(process)
    pairs = _powers(start, end, steps, share)
    check(apply, process, prediction, pairs)
    smallest = (start - end) / steps

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)
        size = step.t - step.s
        half = size > 1.5 * smallest  # the target is made of half steps
        null = null_of(null_cond, context)
        if cond_dropout > 0:
            rate = jnp.where(half, 0, cond_dropout)
            step = step._replace(cond=drop_condition(step.more, step.cond, null, rate))

        network = lambda params, step: two_time_denoiser(apply, params, prediction, step, dropout=dropout)  # noqa: E731
        target_of = network(average(context), step)
        if guide is not None:
            unguided = network(average(context), step._replace(cond=like_null(step.cond, null)))
            target_of = _guided(guide, target_of, unguided, size < 3 * smallest)
        both = two_jumps(target_of, step.x, step.cur, process((step.t + step.s) / 2), step.nxt)
        x0 = jax.lax.stop_gradient(jnp.where(append_axes(half, step.x.ndim), both, step.x0))
        x0_hat = network(params, step)(step.x, step.cur, step.nxt)
        mse = squared(*(target(prediction, a, step.x, step.cur) for a in (x0_hat, x0)))
        return jnp.mean(mse), {"flow_mse": _mean(mse, ~half), "shortcut_mse": _mean(mse, half)}

    return loss


def _powers(start: float, end: float, steps: int, share: float) -> TimePairs:
    """Steps of the size 2^-k of the process's times, from a multiple of it; k < log2(steps) in a share of them."""
    finest = steps.bit_length() - 1

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        half_key, k_key, place_key = jax.random.split(key, 3)
        half = jax.random.bernoulli(half_key, share, (batch,))
        k = jnp.where(half, jax.random.randint(k_key, (batch,), 0, finest), finest)
        place = jax.random.uniform(place_key, (batch,))
        count = jnp.exp2(k.astype(place.dtype))
        i = jnp.floor(place * count)
        t, s = (end + (start - end) * at / count for at in (i + 1, i))
        return t, s, jnp.ones_like(t)

    return pairs


def _guided(guide: Guided, cond: FlowMap, uncond: FlowMap, chosen: Array) -> FlowMap:
    """A network's jumps, guided for the chosen examples."""

    def guided(x: Array, cur: Level, nxt: Level) -> Array:
        denoise = guide(*(lambda x, cur, jump=jump: jump(x, cur, nxt) for jump in (cond, uncond)))
        return jnp.where(append_axes(chosen, x.ndim), denoise(x, cur), cond(x, cur, nxt))

    return guided


def _mean(mse: Array, chosen: Array) -> Array:
    count = jnp.maximum(jnp.sum(chosen, dtype=mse.dtype), 1)
    return jnp.sum(jnp.where(chosen, mse, 0)) / count


def _check(steps: int, share: float, null_cond: Any, guide: Any, cond_dropout: float) -> None:
    if not isinstance(steps, int) or steps < 2 or steps & (steps - 1):
        raise ValueError(f"steps must be a power of 2, at least 2, since each step is made of two halves, got {steps}")
    check_number("share", share, low=0.0, high=1.0)
    check_number("cond_dropout", cond_dropout, low=0.0, high=1.0)
    if guide is not None:
        check_function("guide", guide, "(cond, uncond) -> denoiser")
    if null_cond is None and (guide is not None or cond_dropout > 0):
        raise ValueError("guide and cond_dropout need null_cond, the condition of the unconditional network")
