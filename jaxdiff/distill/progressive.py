"""Progressive distillation: a student takes one DDIM step for two of its teacher's, and is the next teacher."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, concrete, factory
from jaxdiff.distill.base import Context, Teacher, check_first, denoiser_of, split_inputs
from jaxdiff.distill.base import teacher as make_teacher
from jaxdiff.distill.distances import squared
from jaxdiff.distill.jumps import two_jumps
from jaxdiff.levels import Level, check_grid, q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import check_key
from jaxdiff.parameterize import denoiser
from jaxdiff.sample import check_levels
from jaxdiff.schema import integer
from jaxdiff.types import Apply, Batch, Loss, Metrics, Params, Prediction, Weight
from jaxdiff.weights import truncated_snr

__all__ = ["progressive", "student_grid"]


@factory
def progressive(
    apply: Apply,
    levels: Level,
    prediction: Prediction,
    *,
    stages: int,
    stage_updates: int,
    teacher: Teacher | None = None,
    average: Callable[[Context], Params] = lambda context: context.ema,
    weight: Weight | None = None,
    dropout: bool = False,
) -> Loss:
    """w(t) |x0_hat(x_t, t) - x0'|^2, x0' the target whose one DDIM step makes two of the teacher's.

    Salimans and Ho 2022, arXiv:2202.00512, algorithm 2, with the times of a sampler's grid. With a grid of N steps the
    students of the stages 1, 2, ... have N/2, N/4, ... steps; the teacher of each stage but the first is the student of
    the one before. All stages are one program: train with the average `train.ema.every(stage_updates)`, whose initial
    value is a copy of the teacher's parameters, with those as the student's initial parameters, and with
    `train.restarting(optimizer, stage_updates)`. Sample the n-step student with `solvers.ddim()` on
    `student_grid(levels, n)`, which is `grids.by_time(process, n)` where the levels are `grids.by_time(process, N)`.

    Args:
        apply: the student, (params, x, noise[B], cond) -> F.
        levels: the grid of the first teacher's N steps, fields [N + 1], from noise to data.
        prediction: what the student predicts.
        stages: number of stages; 2^stages divides N.
        stage_updates: number of updates in a stage. After the last stage the loss is NaN, so that nothing is updated.
        teacher: the first stage's teacher, e.g. a guided one; None is `average`'s, without guidance.
        average: context -> the student's parameters at the end of the last stage, at first the teacher's.
        weight: weight of the squared error of x_0, by level; None is `weights.truncated_snr()`, as in the paper.
        dropout: whether the student takes `key=` for dropout.

    Returns:
        the loss, a mean over batch and dimensions; metrics: "mse", the unweighted mean squared error of x_0, and
        "steps", the number of steps of the student.

    Raises:
        ValueError: stages that do not divide the grid's steps; stage_updates < 1; levels that are no grid; a prediction
            that is undefined at pure noise, where the grid starts there; from the loss, a context without an average.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_function("average", average, "(context) -> params")
    weight = truncated_snr() if weight is None else weight
    check_function("weight", weight, "(level) -> [B]")
    check_levels(levels)
    steps = levels.t.shape[0] - 1
    stages, stage_updates = integer("stages", stages, 1), integer("stage_updates", stage_updates, 1)
    if steps % 2**stages:
        raise ValueError(f"each stage halves the steps: 2^stages must divide {steps} steps, got stages={stages}")
    last_student = make_teacher(apply, prediction, params=average)
    if teacher is not None:
        check_function("teacher", teacher, "(context, cond) -> denoiser")
    check_first(levels.at(0), prediction, teacher)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        if average(context) is None:
            raise ValueError("progressive needs the parameters' average: given=distill.context(ema=True)")
        check_key(key)
        t_key, eps_key, net_key = jax.random.split(key, 3)
        x0, eps, cond = split_batch(batch, eps_key)
        stage = jnp.minimum(context.step // stage_updates, stages - 1)
        stride = jnp.left_shift(2, stage)
        i = stride * jax.random.randint(t_key, x0.shape[:1], 0, steps // stride, jnp.int32)
        t, mid, s = (_level_of(levels, i + place, x0) for place in (0, stride // 2, stride))
        x = q_sample(x0, eps, t)

        def target_of(teacher: Teacher) -> Array:
            denoise = denoiser_of(teacher, context, cond)
            return two_jumps(lambda x, cur, nxt: denoise(x, cur), x, t, mid, s)

        if teacher is None:
            target = target_of(last_student)
        else:
            target = jax.lax.cond(stage == 0, lambda: target_of(teacher), lambda: target_of(last_student))
        x0_hat = denoiser(apply, params, prediction, cond, key=net_key if dropout else None)(x, t)
        error = squared(x0_hat, target)
        value = jnp.where(context.step < stages * stage_updates, jnp.mean(weight(t) * error), jnp.nan)
        return value, {"mse": jnp.mean(error), "steps": steps // stride}

    return loss


@concrete
def student_grid(levels: Level, steps: int) -> Level:
    """The grid of a student that `progressive` trains: every n-th level of its teacher's grid.

    Args:
        levels: the grid of the first teacher's N steps, fields [N + 1].
        steps: number of steps of the student, which divides N.

    Returns:
        a grid, fields [steps + 1].

    Raises:
        ValueError: levels that are no grid, or steps that do not divide N.
    """
    check_grid(levels)
    teacher_steps = levels.t.shape[0] - 1
    if teacher_steps % integer("steps", steps, 1):
        raise ValueError(f"a student's steps divide the {teacher_steps} steps of its teacher's grid, got {steps}")
    return levels.at(slice(None, None, teacher_steps // steps))


def _level_of(levels: Level, index: Array, x: Array) -> Level:
    level = levels.at(index)
    return level._replace(alpha=level.alpha.astype(x.dtype), sigma=level.sigma.astype(x.dtype))
