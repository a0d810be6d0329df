"""Consistency trajectory models (Kim et al. 2023): jumps between any two levels, compared after a jump to the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.distill.base import Context, Distance, Teacher, TimePairs, denoiser_of, split_inputs
from jaxdiff.distill.distances import pseudo_huber, squared
from jaxdiff.distill.jumps import average, between, check, draw, flow_step, jump, two_time_denoiser
from jaxdiff.levels import Level, append_axes, clean_level
from jaxdiff.parameterize import target
from jaxdiff.processes.base import Process
from jaxdiff.solvers import heun
from jaxdiff.solvers.base import Solver, select_level
from jaxdiff.types import Apply, Batch, Denoiser, FlowMap, Loss, Metrics, Params, Prediction

__all__ = ["trajectory"]


@factory
def trajectory(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs,
    teacher: Teacher | None = None,
    solver: Solver | None = None,
    distance: Distance | None = None,
    dsm_weight: float = 1.0,
    dropout: bool = False,
) -> Loss:
    """Soft consistency d(G'(G(x_t, t, s), s, 0), G'(G'(x_u, u, s), s, 0)) and denoising score matching.

    Kim et al. 2023, arXiv:2310.02279: G is the student's jump, G' that of the average of the parameters, u a
    time drawn between s and t, and x_u a step of a solver from x_t. The gradient passes through the first G' into G.
    Score matching trains x0_hat at s = t. The paper's third term is a GAN's.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F, which is given cond["next_noise"].
        process: any; the paper's is `processes.EDM()`.
        prediction: any; the paper's is `edm`.
        pairs: the times t and s, sigma > 0 at t; s may be clean. See `sorted_pairs`.
        teacher: the denoiser of the solver's step; None: the average's own, at s = t.
        solver: of that step, deterministic and without a state; None is `solvers.heun()`.
        distance: of the two estimates of the data; None is `pseudo_huber()`.
        dsm_weight: factor of the score matching, the mean squared error of F.
        dropout: whether the network takes `key=` for dropout; all calls have the same mask.

    Returns:
        the loss of ((params, Context), key, batch), for a step made with `given=distill.context(ema=True)`; metrics:
        "consistency" and "dsm", the two terms.

    Raises:
        ValueError: dsm_weight is negative, or the solver draws noise or needs another denoiser; from the loss, there is
            no average.
    """
    check(apply, process, prediction, pairs, teacher=teacher, distance=distance)
    check_number("dsm_weight", dsm_weight, low=0.0)
    distance = pseudo_huber() if distance is None else distance
    to_mid = flow_step(heun() if solver is None else solver)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)
        x, cur, nxt = step.x, step.cur, step.nxt
        mid = process(between(step.more, step.t, step.s))
        student, stopped = (
            two_time_denoiser(apply, p, prediction, step, dropout=dropout) for p in (params, average(context))
        )
        own: Denoiser = lambda x, level: stopped(x, level, level)  # noqa: E731
        x_mid = to_mid(own if teacher is None else denoiser_of(teacher, context, step.cond), x, cur, mid)
        ends = jump(x, student(x, cur, nxt), cur, nxt), jump(x_mid, stopped(x_mid, mid, nxt), mid, nxt)
        estimate, wanted = (_to_data(stopped, z, cur, nxt) for z in ends)
        consistency = distance(estimate, jax.lax.stop_gradient(wanted))
        dsm = squared(*(target(prediction, x0, x, cur) for x0 in (student(x, cur, cur), step.x0)))
        terms = {"consistency": jnp.mean(step.weight * consistency), "dsm": jnp.mean(step.weight * dsm)}
        return terms["consistency"] + dsm_weight * terms["dsm"], terms

    return loss


def _to_data(denoise: FlowMap, z: Array, cur: Level, nxt: Level) -> Array:
    """The jump of z from the level `nxt`, cleaner than `cur`, to the data: z itself if it is there."""
    noisy = nxt.sigma > 0
    safe = select_level(noisy, cur, nxt)
    return jnp.where(append_axes(noisy, z.ndim), denoise(z, safe, clean_level(safe)), z)
