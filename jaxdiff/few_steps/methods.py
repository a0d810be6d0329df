"""The methods of few-step training: for each, the student's network, its loss, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxdiff import distill, losses, networks, solvers, train
from jaxdiff.experiment import UserError
from jaxdiff.few_steps.adversarial import adversarial, distribution_matching, gan, latent_adversarial
from jaxdiff.few_steps.method import Method, method_of
from jaxdiff.few_steps.teacher import Teacher
from jaxdiff.options import Run
from jaxdiff.times import default_times
from jaxdiff.types import Loss

__all__ = ["METHODS"]

TEACHER_STEPS = 16  # of a teacher that takes steps itself
DIFFERENCE = 0.02  # of times, for a derivative by them


def progressive(teacher: Teacher, run: Run, steps: int) -> Method:
    """Salimans and Ho 2022: stages that halve the number of steps, down to `steps`."""
    levels = teacher.experiment.sampling.grid(TEACHER_STEPS)
    stages = (TEACHER_STEPS // steps).bit_length() - 1
    if steps * 2**stages != TEACHER_STEPS or stages < 1:
        raise UserError(f"progressive distillation halves {TEACHER_STEPS} steps: sample_steps must be 1, 2, 4 or 8")
    stage_updates = -(-run.steps // stages)
    loss = distill.progressive(
        networks.as_apply(teacher.network),
        levels,
        teacher.prediction,
        stages=stages,
        stage_updates=stage_updates,
        teacher=teacher.denoiser(),
        average=lambda context: context.ema[1],
    )
    averages = train.ema.warmup(0.99), train.ema.every(stage_updates)
    return method_of(teacher, teacher.network, loss, solvers.ddim(), ema=averages, stage_updates=stage_updates)


def guidance(teacher: Teacher, run: Run, steps: int) -> Method:
    """Meng et al. 2023, stage one: half as many evaluations, in the teacher's own number of steps."""
    if teacher.null_cond is None:
        raise UserError(
            "--method guidance distils the guidance of a model that was also trained without its condition, and "
            f"{teacher.path} was not"
        )
    network = teacher.network.clone(guidance_dim=64)
    loss = distill.guidance_distillation(
        networks.as_apply(network),
        teacher.process,
        teacher.prediction,
        teacher=teacher.denoiser(guided=False),
        null_cond=teacher.null_cond,
        max_scale=max(2.0, 1.5 * teacher.guidance),
    )
    return method_of(teacher, network, loss, teacher.experiment.sampling.solver)


def consistency(teacher: Teacher, run: Run, steps: int) -> Method:
    """Song et al. 2023: consistency distillation along the teacher's guided flow."""
    loss = distill.consistency(
        networks.as_apply(teacher.network),
        teacher.process,
        teacher.prediction,
        pairs=distill.grid_pairs(teacher.process, teacher.experiment.sampling.grid(TEACHER_STEPS)),
        teacher=teacher.denoiser(),
        solver=solvers.ddim(),
    )
    return method_of(teacher, teacher.network, loss, solvers.consistency())


def ect(teacher: Teacher, run: Run, steps: int) -> Method:
    """Geng et al. 2024: consistency tuning of the teacher's weights, from data."""
    loss = distill.consistency(
        networks.as_apply(teacher.network),
        teacher.process,
        teacher.prediction,
        pairs=distill.ect_pairs(teacher.process, steps=run.steps, stages=min(8, run.steps)),
        distance=distill.norm,
    )
    return method_of(teacher, teacher.network, loss, solvers.consistency())


def continuous_consistency(teacher: Teacher, run: Run, steps: int) -> Method:
    """Lu and Song 2024: sCD, consistency in continuous time along the teacher's flow.

    The derivative is a difference, as in `mean_flow`.
    """
    loss = distill.continuous_consistency(
        networks.as_apply(teacher.network),
        teacher.process,
        teacher.prediction,
        teacher=teacher.denoiser(),
        warmup_steps=run.steps // 2,
        difference=0.1,
    )
    return method_of(teacher, teacher.network, loss, solvers.consistency())


def reflow(teacher: Teacher, run: Run, steps: int) -> Method:
    """Liu et al. 2022: straight paths between noise and what the teacher makes of it, drawn anew for each update."""
    apply, sampling = networks.as_apply(teacher.network), teacher.experiment.sampling
    levels, teach = sampling.grid(8), teacher.denoiser()
    straight = losses.denoising_loss(apply, teacher.process, teacher.prediction)

    def loss(inputs: Any, key: jax.Array, batch: Any) -> Any:
        params, context = inputs
        x0, _, cond = losses.split_batch(batch, key)
        pair_key, key = jax.random.split(key)
        keys = jax.random.split(pair_key, x0.shape[0])
        denoise = lambda cond: teach(context, cond)  # noqa: E731
        pairs = distill.reflow(denoise, solvers.dpmpp_2m(), levels, keys, shape=x0.shape[1:], cond=cond)
        return straight(params, key, pairs)

    return method_of(teacher, teacher.network, loss, solvers.ddim())


def _jumping(original: Teacher, make: Callable[..., Loss], **options: Any) -> Method:
    """Make a method of a student that is given both ends of a step."""
    network = original.network.clone(next_noise=True)
    loss = make(networks.as_apply(network), original.process, original.prediction, **options)
    return method_of(original, network, loss, solvers.flow_map())


def shortcut(teacher: Teacher, run: Run, steps: int) -> Method:
    """Frans et al. 2024: steps of 1/32, and of twice, four times, ... that length, with the guidance inherited."""
    guided = {} if teacher.guidance == 1 else {"null_cond": teacher.null_cond, "guide": teacher.guide}
    return _jumping(teacher, distill.shortcut, steps=32, share=0.5, **guided)


def mean_flow(teacher: Teacher, run: Run, steps: int) -> Method:
    """Geng et al. 2025: the mean velocity of the teacher's guided flow.

    The derivative is a difference, since those of teachers that are given 1000 t are rough.
    """
    return _jumping(
        teacher, distill.mean_flow, pairs=_pairs(teacher), teacher=teacher.denoiser(), difference=DIFFERENCE
    )


def _pairs(teacher: Teacher) -> distill.TimePairs:
    return distill.sorted_pairs(default_times(teacher.process), 0.25)


def lagrangian(teacher: Teacher, run: Run, steps: int) -> Method:
    """Boffi et al. 2024: flow maps by the derivative with respect to the end of a step."""
    return _jumping(teacher, distill.lagrangian, pairs=_pairs(teacher), teacher=teacher.denoiser())


def eulerian(teacher: Teacher, run: Run, steps: int) -> Method:
    """Boffi et al. 2024: flow maps by the derivative with respect to the start of a step, as a difference."""
    return _jumping(teacher, distill.eulerian, pairs=_pairs(teacher), teacher=teacher.denoiser(), difference=DIFFERENCE)


def semigroup(teacher: Teacher, run: Run, steps: int) -> Method:
    """Boffi et al. 2024: flow maps by two steps that end where one does."""
    return _jumping(teacher, distill.semigroup, pairs=_pairs(teacher), teacher=teacher.denoiser())


def trajectory(teacher: Teacher, run: Run, steps: int) -> Method:
    """Kim et al. 2023: consistency trajectories, by the teacher's steps."""
    return _jumping(
        teacher, distill.trajectory, pairs=_pairs(teacher), teacher=teacher.denoiser(), solver=solvers.ddim()
    )


METHODS: dict[str, Callable[[Teacher, Run, int], Method]] = {
    make.__name__: make
    for make in (
        adversarial, consistency, continuous_consistency, distribution_matching, ect, eulerian, gan, guidance,
        lagrangian, latent_adversarial, mean_flow, progressive, reflow, semigroup, shortcut, trajectory,
    )
}  # fmt: skip
