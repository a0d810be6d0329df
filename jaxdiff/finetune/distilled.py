"""Distillation of a network: into one of few steps, or into one that is given the scale of its guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff import distill, interop, solvers
from jaxdiff.experiment import Model, compute_dtype
from jaxdiff.finetune.asked import Asked, network_cond
from jaxdiff.finetune.knobs import Network
from jaxdiff.finetune.origin import Origin, takes_scale
from jaxdiff.guidance import cfg
from jaxdiff.interop.schedulers.config import unit
from jaxdiff.interop.sources import read_fields
from jaxdiff.levels import Level
from jaxdiff.losses import Loss
from jaxdiff.parameterize import mean_output
from jaxdiff.processes import Discrete, Process
from jaxdiff.sampling import Sampling

__all__ = ["few_step_sampling", "make_distillation"]

GRID = 50  # steps of the grid whose neighbours a consistency model connects, as in LCM (20 times of 1,000 each)


def make_distillation(
    model: Model, origin: Origin, asked: Asked, sampling: Sampling, *, network: Network, guidance: float
) -> dict[str, Any]:
    """Make the loss of a distillation, whose teacher is the network as it was read.

    Consistency distillation by the teacher's DDIM steps (latent consistency models, Luo et al. 2023, arXiv:2310.04378,
    sec. 4; with adapters LCM-LoRA, arXiv:2311.05556), or guidance distillation (Meng et al. 2023, arXiv:2210.03142). If
    the network read is given the scale of its guidance, so are teacher and student, at scales drawn from [1,
    max_guidance]; else the teacher's guidance has one scale.

    Args:
        model: the student.
        origin: the network.
        asked: the condition.
        sampling: the student's, whose grid is that of the distillation.
        network: the knobs of the network.
        guidance: scale of the teacher's guidance; 1 is off.

    Returns:
        the attributes `loss`, `given` and `frozen` of `Training`.
    """
    config = read_fields(origin.folder)
    base, scaled = interop.architecture(config, compute_dtype()).apply, takes_scale(config)

    def teacher_apply(frozen: Any, x: Any, noise: Any, cond: Any) -> Any:
        entries = network_cond(frozen["cond"], cond)
        entries = entries if scaled else {name: a for name, a in entries.items() if name != "guidance"}
        return base(frozen["teacher"], x, noise, entries)

    null = None if asked.null_label is None else {"label": jnp.full((1,), asked.null_label, jnp.int32)}
    fixed = network.distill == "consistency" and guidance != 1 and not scaled
    mean: Any = mean_output if model.learned_variance else lambda apply: apply
    teacher = distill.teacher(
        mean(teacher_apply),
        model.prediction,
        params=lambda context: context.frozen,
        guide=(lambda c, u: cfg(c, u, guidance)) if fixed else None,
        null_cond=null if fixed else None,
    )
    parts: Any = mean(model.apply), model.process, model.prediction
    loss: Loss
    if network.distill == "guidance":
        loss = distill.guidance_distillation(*parts, teacher=teacher, null_cond=null, max_scale=network.max_guidance)
    else:
        pairs = distill.grid_pairs(model.process, sampling.grid(_most_steps(model.process)))
        loss = distill.consistency(*parts, pairs=pairs, teacher=teacher, solver=solvers.ddim())
        loss = distill.random_guidance(loss, network.max_guidance) if scaled else loss

    def of_trained(inputs: Any, key: Any, batch: Any) -> Any:
        trained, context = inputs
        return loss(((trained, context.frozen), context), key, batch)

    def frozen(mesh: Mesh | None) -> Any:
        lora = network.mode == "lora"
        return {**model.frozen, "teacher": model.frozen["base"] if lora else origin.read(compute_dtype()).params}

    return {"loss": of_trained, "given": distill.context(), "frozen": frozen}


def few_step_sampling(scheduler: interop.Scheduler) -> Sampling:
    """Make the sampling of a consistency model of a network with this scheduler, in 1 to 50 steps.

    With a table of betas these are LCMScheduler's times; else the scheduler's own, down to clean data.

    Args:
        scheduler: of the network that is distilled.
    """
    process, grid = scheduler.process, scheduler.sampling.grid

    def of_table(n: int) -> Level:
        T, most = process.T, _most_steps(process)  # type: ignore[attr-defined]
        if not 1 <= n <= most:
            raise ValueError(f"a consistency model of a table of {T} times is sampled in 1 to {most} steps, got {n}")
        k = most - np.floor(np.linspace(0, most, n, endpoint=False)).astype(int)
        return process(jnp.asarray(np.append(np.round(T / most * k).astype(int), 0)))

    def to_clean(n: int) -> Level:
        t = grid(n).t
        return process(jnp.append(t[:-1], jnp.zeros((), t.dtype)))

    levels = of_table if isinstance(process, Discrete) else to_clean
    return replace(scheduler.sampling, grid=levels, solver=solvers.consistency(), init_noise_std=unit)


def _most_steps(process: Process) -> int:
    return min(GRID, getattr(process, "T", GRID))
