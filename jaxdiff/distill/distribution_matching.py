"""Distribution matching distillation: a student follows the difference of its own score and the teacher's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.adversarial import Adversary, adversarial_term, check_adversary, noised_critic_loss
from jaxdiff.distill.base import Teacher, check_parts, denoiser_of, split_inputs
from jaxdiff.distill.critics import Generator
from jaxdiff.levels import Level, append_axes, check_grid, q_sample
from jaxdiff.losses import denoising_loss, split_batch
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import denoiser
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.types import Apply, Batch, Loss, Metrics, Prediction, TimeSampler, Weight

__all__ = ["distribution_matching", "grid_times"]


def distribution_matching(
    generate: Generator,
    teacher: Teacher,
    process: Process,
    *,
    apply: Apply,
    prediction: Prediction,
    times: TimeSampler,
    weight: Weight | None = None,
    fake_loss: Loss | None = None,
    adversary: Adversary | None = None,
    adversarial_weight: float = 3e-3,
) -> dict[str, Loss]:
    """Distribution matching distillation (Yin et al. 2023, DMD, arXiv:2311.18828; 2024, DMD2, 2405.14867).

    The student's examples x are noised, and denoised by the teacher and by a second network, "fake", which learns to
    denoise the student's examples. The gradient of KL(student | teacher) with respect to x is proportional to
    fake(x_t) - teacher(x_t).

    Args:
        generate: the student, e.g. `few_step_generator(...)`.
        teacher: the denoiser of the data, e.g. `teacher(apply, prediction, guide=...)`.
        process: the process of the noise.
        apply, prediction: the fake network; its parameters params["fake"] start as the teacher's.
        times: distribution of t, e.g. `grid_times(levels)`.
        weight: factor of the gradient by level; `weights.simple` gives that of the KL divergence. None is the paper's,
            alpha / mean |x - teacher(x_t)|, which makes gradients of all levels about equally long.
        fake_loss: (params["fake"], key, batch) -> (loss, metrics), on a batch whose "x" are the student's examples;
            None is `denoising_loss(apply, process, prediction, times=times)`.
        adversary: the critic of the noised examples in DMD2; None: no critic.
        adversarial_weight: factor of the student's adversarial loss.

    Returns:
        {"student": loss, "fake": loss}, and "critic" with an adversary, for `train.players`; a DMD2 student trains once
        in 5 updates of the others: `alternate({("fake", "critic"): 5, "student": 1})`. The student's loss is not a
        measure of progress. Its metrics: "matching", the norm of the gradient with respect to x in each dimension, and
        "adversarial".

    Raises:
        ValueError: a function with another signature, or a negative weight.
    """
    check_process(process)
    check_function("generate", generate, "(params, key, batch) -> x")
    check_function("teacher", teacher, "(context, cond) -> denoiser")
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("times", times, "(key, batch) -> (t, weight)")
    check_parts(weight=weight)
    if fake_loss is None:
        fake_loss = denoising_loss(apply, process, prediction, times=times)
    if adversary is not None:
        check_adversary(adversary)
        check_number("adversarial_weight", adversarial_weight, low=0.0)

    def student_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        make_key, t_key, eps_key, key = jax.random.split(key, 4)
        _, _, cond = split_batch(batch, eps_key)
        x = generate(params["student"], make_key, batch)
        t, t_weight = times(t_key, x.shape[0])
        level = process(t)
        x_t = q_sample(x, normal_like(eps_key, x), level).astype(x.dtype)
        real = denoiser_of(teacher, context, cond)(x_t, level)
        fake = denoiser(apply, params["fake"], prediction, cond)(x_t, level)
        scale = _normalized(level, x, real) if weight is None else weight(level)
        grad = append_axes(scale, x.ndim) * (fake - real)
        # Its value means nothing; its gradient with respect to x is grad.
        each = jnp.mean(jnp.square(x - jax.lax.stop_gradient(x - grad)), axis=range(1, x.ndim)) / 2
        value, metrics = jnp.mean(t_weight * each), {"matching": jnp.sqrt(jnp.mean(jnp.square(grad)))}
        if adversary is not None:
            metrics["adversarial"] = adversarial_term(adversary, inputs, x, key, batch)
            value = value + adversarial_weight * metrics["adversarial"]
        return value, metrics

    def score_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, _ = split_inputs(inputs)
        make_key, key, eps_key = jax.random.split(key, 3)
        _, _, cond = split_batch(batch, eps_key)
        x = jax.lax.stop_gradient(generate(params["student"], make_key, batch))
        return fake_loss(params["fake"], key, {**cond, "x": x})

    losses: dict[str, Loss] = {"student": student_loss, "fake": score_loss}
    if adversary is not None:
        losses["critic"] = noised_critic_loss(generate, adversary)
    return losses


@factory
def grid_times(levels: Level, low: float = 0.02, high: float = 0.98) -> TimeSampler:
    """The times of a grid between two shares of its length, uniformly; DMD leaves out both ends.

    Args:
        levels: a grid, e.g. `grids.karras(process, 1000, ...)`; fields [N + 1].
        low, high: shares of the N steps: the noisiest levels before low N and the cleanest from high N are left out.

    Raises:
        ValueError: `levels` is not a grid, or nothing is left of it.
    """
    check_grid(levels)
    check_number("low", low, low=0.0, high=1.0)
    check_number("high", high, low=0.0, high=1.0)
    steps = levels.t.shape[0] - 1
    first, last = round(low * steps), round(high * steps)
    if not first < last:
        raise ValueError(f"no level lies between the shares low = {low} and high = {high} of {steps} steps")

    def times(key: Array, batch: int) -> tuple[Array, Array]:
        t = jnp.asarray(levels.t)[jax.random.randint(key, (batch,), first, last)]
        return t, jnp.ones((batch,), jnp.result_type(float))

    return times


def _normalized(level: Level, x: Array, real: Array) -> Array:
    """alpha / mean |x - real|, [B]; the floor matters only where the teacher returns x itself."""
    distance = jnp.mean(jnp.abs(x - real), axis=range(1, x.ndim))
    return level.alpha.astype(x.dtype) / jnp.maximum(distance, 1e-8)
