"""Guidance distillation: one evaluation of a network that is given the scale replaces the two of guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Context, Teacher, denoiser_of, like_null, null_of, split_inputs
from jaxdiff.distill.distances import squared
from jaxdiff.guidance import cfg
from jaxdiff.levels import q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import check_key
from jaxdiff.parameterize import check_network_time, denoiser
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.times import default_times
from jaxdiff.types import Apply, Batch, Denoiser, Loss, Metrics, Params, Prediction, TimeSampler, Weight
from jaxdiff.weights import truncated_snr

__all__ = ["guidance_distillation", "random_guidance"]


@factory
def guidance_distillation(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    teacher: Teacher,
    null_cond: Any,
    max_scale: float,
    guide: Callable[[Denoiser, Denoiser, Array], Denoiser] = cfg,
    weight: Weight | None = None,
    times: TimeSampler | None = None,
    dropout: bool = False,
) -> Loss:
    """w(t) |x0_hat(x_t, t, scale) - x0'|^2 for random scales, x0' the teacher's with guidance.

    Meng et al. 2023, arXiv:2210.03142, sec. 3.1. The student is given the scale as cond["guidance"], [B], as
    `networks.UNet`, `DiT` and `MLP` with `guidance_dim` are; they start as the teacher, with its weights. A scale of 1
    is no guidance, as in `guidance.cfg`; the paper's is less by 1. Few-step losses of this student are wrapped in
    `random_guidance`.

    Args:
        apply: the student, (params, x, noise[B], cond) -> F.
        process: the forward process.
        prediction: what the student predicts.
        teacher: the teacher without guidance; it is evaluated with the condition and with `null_cond`.
        null_cond: the null condition: like the condition, with leading axis 1; or context -> it, as for `teacher`.
        max_scale: the largest scale, at least 1; scales are uniform in [1, max_scale].
        guide: the teacher's guidance, (conditional, unconditional, scale [B]) -> denoiser.
        weight: weight of the squared error of x_0, by level; None is `weights.truncated_snr()`.
        times: distribution of t; None is that of `losses.denoising_loss`.
        dropout: whether the student takes `key=` for dropout.

    Returns:
        the loss, a mean over batch and dimensions; metrics: "mse", the unweighted mean squared error of x_0.

    Raises:
        ValueError: max_scale below 1, no null condition; from the loss, a batch that holds "guidance".
    """
    check_process(process)
    times = default_times(process) if times is None else times
    weight = truncated_snr() if weight is None else weight
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_network_time(apply, process, prediction)
    check_function("times", times, "(key, batch) -> (t, weight)")
    check_function("weight", weight, "(level) -> [B]")
    check_function("guide", guide, "(conditional, unconditional, scale) -> denoiser")
    check_function("teacher", teacher, "(context, cond) -> denoiser")
    if not jax.tree.leaves(null_cond):
        raise ValueError(
            f"guidance needs null_cond, the condition of its unconditional denoiser, got {null_cond!r:.80}"
        )

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        t_key, eps_key, net_key = jax.random.split(key, 3)
        x0, eps, cond = split_batch(batch, eps_key)
        t, t_weight = times(t_key, x0.shape[0])
        level = process(t)
        x = q_sample(x0, eps, level)
        plain = {name: value for name, value in cond.items() if name != "guidance"}
        null = like_null(plain, null_of(null_cond, context))
        conditional, unconditional = (denoiser_of(teacher, context, c) for c in (plain, null))
        target = guide(conditional, unconditional, cond["guidance"])(x, level)
        x0_hat = denoiser(apply, params, prediction, cond, key=net_key if dropout else None)(x, level)
        error = squared(x0_hat, target)
        return jnp.mean(t_weight * weight(level) * error), {"mse": jnp.mean(error)}

    return random_guidance(loss, max_scale)


@factory
def random_guidance(loss: Loss, max_scale: float) -> Loss:
    """The loss of a network that is given the scale of its guidance: cond["guidance"] ~ U[1, max_scale], [B].

    Meng et al. 2023, arXiv:2210.03142, sec. 3: their second stage is `progressive` of the student of the first,
    `random_guidance(progressive(...), max_scale)`.

    Args:
        loss: a loss whose networks take cond["guidance"].
        max_scale: the largest scale, at least 1.

    Returns:
        the loss of batches without "guidance".

    Raises:
        ValueError: max_scale is below 1; from the loss, a batch that holds "guidance".
    """
    check_function("loss", loss, "(params, key, batch) -> (loss, metrics)")
    check_number("max_scale", max_scale, low=1.0)

    def with_scale(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        if "guidance" in batch:
            raise ValueError('the loss draws the scale of the guidance, but the batch has an entry "guidance"')
        check_key(key)
        scale_key, key = jax.random.split(key)
        size = len(jax.tree.leaves(batch)[0])
        scale = jax.random.uniform(scale_key, (size,), minval=1.0, maxval=max_scale)
        return loss(params, key, {**batch, "guidance": scale})

    return with_scale
