"""The methods of few-step training: for each, the student's network, its loss, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import distill, grids, losses, networks, solvers, train
from jaxdiff.experiment import UserError
from jaxdiff.few_steps.adversarial import adversarial, distribution_matching, gan, latent_adversarial
from jaxdiff.few_steps.method import Method, method_of
from jaxdiff.few_steps.teacher import Teacher
from jaxdiff.options import Run
from jaxdiff.types import Apply, Loss

__all__ = ["METHODS", "choose"]

TEACHER_STEPS = 16  # of a teacher that takes steps itself
DIFFERENCE = 0.02  # of times, for a derivative by them; a share of the noisiest one
STEPS_OF_SHORTCUTS = 32
UNGUIDED = {"distribution_matching", "ect", "gan", "latent_adversarial"}  # methods that distil no guidance


def progressive(teacher: Teacher, run: Run, steps: int) -> Method:
    """Salimans and Ho 2022: stages that halve the number of steps, down to `steps`."""
    levels = teacher.experiment.sampling.grid(TEACHER_STEPS)
    stages = (TEACHER_STEPS // steps).bit_length() - 1
    if steps * 2**stages != TEACHER_STEPS or stages < 1:
        raise UserError(f"progressive distillation halves {TEACHER_STEPS} steps: sample_steps must be 1, 2, 4 or 8")
    stage_updates, rest = divmod(run.steps, stages)
    if rest or not stage_updates:
        least = max(stage_updates, 1) * stages
        nearest = f"{least}" if least > run.steps else f"{least} or {least + stages}"
        raise UserError(
            f"progressive distillation to {steps} steps has {stages} stages of as many updates each: --steps must be a "
            f"multiple of {stages}, such as {nearest}, got {run.steps}"
        )
    loss = distill.progressive(
        teacher.apply(),
        levels,
        teacher.prediction,
        stages=stages,
        stage_updates=stage_updates,
        teacher=teacher.denoiser(),
        average=lambda context: context.ema[1],
    )
    averages = train.ema.warmup(0.99), train.ema.every(stage_updates)
    made = method_of(teacher, teacher.network, loss, solvers.ddim(), ema=averages, stage_updates=stage_updates)
    # The student knows the levels of its teacher's grid, which a grid of fewer steps need not have.
    return replace(made, sampling=replace(made.sampling, grid=lambda n: distill.student_grid(levels, n)))


def guidance(teacher: Teacher, run: Run, steps: int) -> Method:
    """Meng et al. 2023, stage one: one evaluation for the two of a guided step, in the teacher's number of steps.

    By DDIM where the teacher's solver takes a learned variance, which is not distilled.
    """
    if teacher.null_cond is None:
        raise UserError(
            "--method guidance distils the guidance of a model that was also trained without its condition, and "
            f"{teacher.path} was not"
        )
    if teacher.guidance < 1:
        raise UserError(f"--method guidance distils scales from 1 on, got {teacher.guidance:g}")
    network = _clone(teacher, guidance_dim=64)
    loss = distill.guidance_distillation(
        teacher.apply(network),
        teacher.process,
        teacher.prediction,
        teacher=teacher.denoiser(guided=False),
        null_cond=teacher.null_cond,
        max_scale=teacher.max_guidance,
        guide=teacher.experiment.sampling.guide,
    )
    given = teacher.experiment.sampling
    variance = getattr(given.solver, "learned_variance", False)
    made = method_of(teacher, network, loss, solvers.ddim() if variance else given.solver)
    return replace(made, sampling=replace(made.sampling, steps=given.steps))


def consistency(teacher: Teacher, run: Run, steps: int) -> Method:
    """Song et al. 2023: consistency distillation along the teacher's guided flow."""
    loss = distill.consistency(
        teacher.apply(),
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
        teacher.apply(),
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
        teacher.apply(),
        teacher.process,
        teacher.prediction,
        teacher=teacher.denoiser(),
        warmup_steps=run.steps // 2,
        difference=0.1,
        jvp_apply=_in_float32(teacher, teacher.network),
    )
    return method_of(teacher, teacher.network, loss, solvers.consistency())


def reflow(teacher: Teacher, run: Run, steps: int) -> Method:
    """Liu et al. 2022: straight paths between noise and what the teacher makes of it, drawn anew for each update."""
    apply, sampling = teacher.apply(), teacher.experiment.sampling
    levels, teach = sampling.grid(8), teacher.denoiser()
    straight = losses.denoising_loss(apply, teacher.process, teacher.prediction, times=teacher.times)

    def loss(inputs: Any, key: jax.Array, batch: Any) -> Any:
        params, context = inputs
        x0, _, cond = losses.split_batch(batch, key)
        pair_key, key = jax.random.split(key)
        keys = jax.random.split(pair_key, x0.shape[0])
        denoise = lambda cond: teach(context, cond)  # noqa: E731
        pairs = distill.reflow(denoise, solvers.dpmpp_2m(), levels, keys, shape=x0.shape[1:], cond=cond)
        return straight(params, key, pairs)

    return method_of(teacher, teacher.network, loss, solvers.ddim())


def _in_float32(teacher: Teacher, network: Any) -> Apply | None:
    """The network for derivatives, in float32; None where it computes in that or more digits."""
    half = jnp.finfo(getattr(network, "dtype", jnp.float32)).bits < 32
    return teacher.apply(network.clone(dtype=jnp.float32)) if half else None


def _clone(teacher: Teacher, **fields: Any) -> Any:
    """The teacher's network with another input."""
    lacking = sorted(fields.keys() - type(teacher.network).__dataclass_fields__.keys())
    if lacking:
        kind = type(teacher.network).__name__
        raise UserError(f"this method needs a network with {lacking[0]}, as UNet, DiT and MLP are; a {kind} has none")
    return teacher.network.clone(**fields)


def _jumping(original: Teacher, make: Callable[..., Loss], *, apply: Apply | None = None, **options: Any) -> Method:
    """Make a method of a student that is given both ends of a step; its loss calls it by `apply`, if that is given."""
    network = _clone(original, next_noise=True)
    loss = make(apply or original.apply(network), original.process, original.prediction, **options)
    return method_of(original, network, loss, solvers.flow_map())


def shortcut(teacher: Teacher, run: Run, steps: int) -> Method:
    """Frans et al. 2024: steps of 1/32, and of twice, four times, ... that length, with the guidance inherited."""
    guided: Any = (
        {} if teacher.guidance == 1 else {"null_cond": teacher.null_cond, "guide": teacher.guide, "cond_dropout": 0.1}
    )
    if steps & (steps - 1) or steps > STEPS_OF_SHORTCUTS:
        raise UserError(f"shortcuts are doubled: sample_steps must be 1, 2, 4, ... {STEPS_OF_SHORTCUTS}, got {steps}")
    most = STEPS_OF_SHORTCUTS // 2 if guided else STEPS_OF_SHORTCUTS
    if steps > most:
        raise UserError(
            f"the smallest steps, of 1/{STEPS_OF_SHORTCUTS}, are learned from data, without guidance: sample_steps "
            f"must be at most {most} of a teacher with guidance, got {steps}"
        )
    made = _jumping(teacher, distill.shortcut, steps=STEPS_OF_SHORTCUTS, share=0.5, **guided)
    levels = grids.by_time(teacher.process, most)  # those that it learns, with the guidance
    return replace(made, sampling=replace(made.sampling, grid=lambda n: distill.student_grid(levels, n)))


def mean_flow(teacher: Teacher, run: Run, steps: int) -> Method:
    """Geng et al. 2025: the mean velocity of the teacher's guided flow.

    The derivative is a difference, since those of teachers that are given 1000 t are rough.
    """
    return _differenced(teacher, distill.mean_flow)


def _differenced(teacher: Teacher, make: Callable[..., Loss]) -> Method:
    t_max = getattr(teacher.process, "t_max", None)
    difference = None if t_max is None else DIFFERENCE * t_max  # networks of EDM are given log sigma, which is smooth
    if difference is None:
        _check_smooth(teacher)
    pairs = _pairs(teacher, 0.0 if difference is None else 2 * difference)  # t - difference has noise
    jvp_apply = _in_float32(teacher, _clone(teacher, next_noise=True))
    return _jumping(teacher, make, pairs=pairs, teacher=teacher.denoiser(), jvp_apply=jvp_apply, difference=difference)


def _check_smooth(teacher: Teacher) -> None:
    """Refuse a network that rounds the time, whose derivative by it is 0."""
    if isinstance(getattr(teacher.network, "time", None), networks.LearnedTimes):
        raise UserError(
            f"this method differentiates the network by the time, and that of {teacher.path} rounds it, to the rows of "
            "a table: use a method without derivatives, e.g. semigroup or consistency"
        )


def _pairs(teacher: Teacher, least: float = 0.0) -> distill.TimePairs:
    """Pairs of times, of which the first is `least` or later."""
    drawn = distill.sorted_pairs(teacher.times, 0.25)

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        t, s, weight = drawn(key, batch, step)
        return jnp.maximum(t, least), s, weight

    return pairs


def lagrangian(teacher: Teacher, run: Run, steps: int) -> Method:
    """Boffi et al. 2024: flow maps by the derivative with respect to the end of a step, which is learned in float32."""
    _check_smooth(teacher)
    apply = _in_float32(teacher, _clone(teacher, next_noise=True))
    return _jumping(teacher, distill.lagrangian, apply=apply, pairs=_pairs(teacher), teacher=teacher.denoiser())


def eulerian(teacher: Teacher, run: Run, steps: int) -> Method:
    """Boffi et al. 2024: flow maps by the derivative with respect to the start of a step, as a difference."""
    return _differenced(teacher, distill.eulerian)


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


def choose(teacher: Teacher, run: Run, method: str, *, guidance: float | None, steps: int | None) -> Method:
    """Make a method of METHODS, as the options ask for it.

    Args:
        teacher: the trained run.
        run: the common knobs.
        method: its name.
        guidance: the scale that was asked for; None: none was.
        steps: of a sample, as was asked for; None: those of the method.

    Returns:
        the method, whose `sampling` has the steps.

    Raises:
        UserError: the method does not take the scale or the steps, or the teacher is not for it.
    """
    if guidance is not None and method in UNGUIDED:
        raise UserError(f"--method {method} distils no guidance: leave out --guidance")
    if method == "gan" and steps not in (None, 1):
        raise UserError("--method gan draws in one step: leave out --sample-steps")
    made = METHODS[method](teacher, run, 1 if steps is None else steps)
    return made if steps is None else replace(made, sampling=replace(made.sampling, steps=steps))
