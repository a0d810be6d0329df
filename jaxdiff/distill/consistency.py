"""Consistency models: distilled from a teacher's probability flow, or trained without one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, factory
from jaxdiff.distill.base import (
    Context,
    Distance,
    Teacher,
    TimePairs,
    check_boundary,
    check_first,
    check_parts,
    denoiser_of,
    split_inputs,
)
from jaxdiff.distill.distances import pseudo_huber
from jaxdiff.distill.jumps import flow_step
from jaxdiff.levels import Ends, Level, q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import check_key
from jaxdiff.parameterize import check_network_time, denoiser
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.solvers import Solver, heun
from jaxdiff.solvers.base import select_level
from jaxdiff.types import Apply, Batch, Loss, Metrics, Params, Prediction

__all__ = ["consistency"]

Target = str | Callable[[Context], Params]


@factory
def consistency(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs,
    distance: Distance | None = None,
    teacher: Teacher | None = None,
    solver: Solver | None = None,
    target: Target = "student",
    dropout: bool = False,
) -> Loss:
    """The consistency loss E[w d(f(x_t, t), sg f(x_s, s))] of pairs s < t (Song et al. 2023, arXiv:2303.01469, eq. 7).

    f is the denoiser of the network, which learns to return the end of the probability flow through x_t. With a
    teacher, x_s is one step of its flow from x_t (consistency distillation); without, x_s = alpha_s x_0 + sigma_s eps
    has the data and the noise of x_t (consistency training, eq. 10). Where s is clean, x_s itself is the target. Draw
    with `solvers.consistency`.

    The published recipes, for a run of K updates:

    - Consistency distillation: `pairs=grid_pairs(process, levels)` with `levels = jd.grids.karras(process, 18,
      sigma_min=0.002, sigma_max=80.0)`, `teacher=...`, `target="ema"`, and `train.ema.constant(0.95)` as the average.
    - Consistency training: `pairs=grid_pairs(process, ct_grid(process, K))`, `target="ema"`, and `ct_decay(K)` as the
      average.
    - Improved consistency training (Song and Dhariwal 2023, arXiv:2310.14189):
      `pairs=log_normal_pairs(process, ict_grid(process, K))`.
    - Easy Consistency Tuning (Geng et al. 2024, arXiv:2406.14548), of a diffusion model's parameters:
      `pairs=ect_pairs(process, steps=K)`, `distance=norm`, and a network with dropout.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F.
        process: the forward process.
        prediction: what F is; with f(x, 0) = x for any F: velocity, v, eps, score, edm or consistency_model.
        pairs: distribution of the times t and s.
        distance: between the estimates of f; None is `pseudo_huber()`.
        teacher: a trained denoiser, see `distill.teacher`; None is consistency training.
        solver: the teacher's step from t to s, deterministic, e.g. `solvers.ddim()`; None is `solvers.heun()`.
        target: parameters of f(x_s, s): "student" (without gradient), "ema" (the average in the loss's context), or a
            function of the context, e.g. `lambda context: context.ema[0]`.
        dropout: whether the network takes `key=` for dropout; both evaluations then have the same mask.

    Returns:
        the loss, called with ((params, Context), key, batch), see `distill.context`; metrics: "distance", without the
        weights of the pairs.

    Raises:
        ValueError: a prediction without f(x, 0) = x, or one that is undefined at pure noise, the student's or the
            teacher's, where the pairs are of a grid that starts there; a solver without a teacher, or one that draws
            noise or adapts its step; an unknown target; from the loss, no average for the target "ema".
    """
    check_process(process)
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_network_time(apply, process, prediction)
    check_function("pairs", pairs, "(key, batch, step) -> (t, s, weight)")
    check_boundary(process, prediction)
    distance = pseudo_huber() if distance is None else distance
    check_parts(teacher, distance)
    check_first(getattr(pairs, "first", None), prediction, teacher)
    params_of = _target(target)
    next_of = _next(teacher, solver)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        check_key(key)
        pairs_key, eps_key, net_key = jax.random.split(key, 3)
        x0, eps, cond = split_batch(batch, eps_key)
        t, s, weight = pairs(pairs_key, x0.shape[0], context.step)
        cur, nxt = process(t).expand_to(x0), process(s).expand_to(x0)
        x_t = q_sample(x0, eps, cur)
        x_s = next_of(context, cond, Ends(x0, eps), x_t, cur, nxt)

        def f(params: Params, x: Array, level: Level) -> Array:
            return denoiser(apply, params, prediction, cond, key=net_key if dropout else None)(x, level)

        clean = nxt.sigma == 0
        # The noise input of the clean level may be infinite: the unused estimate is made at a safe level.
        fixed = jax.lax.stop_gradient(params_of(params, context))
        wanted = jnp.where(clean, x_s, f(fixed, x_s, select_level(~clean, cur, nxt)))
        each = distance(f(params, x_t, cur), wanted)
        return jnp.mean(weight * each), {"distance": jnp.mean(each)}

    return loss


def _target(target: Target) -> Callable[[Params, Context], Params]:
    if callable(target):
        check_function("target", target, "(context) -> params")
        return lambda params, context: target(context)
    if target not in ("student", "ema"):
        raise ValueError(f"target must be 'student', 'ema' or a function (context) -> params, got {target!r:.80}")
    if target == "student":
        return lambda params, context: params

    def average(params: Params, context: Context) -> Params:
        if context.ema is None:
            raise ValueError("target='ema' needs the average: train with given=distill.context(ema=True)")
        if isinstance(context.ema, tuple) and not isinstance(params, tuple):
            raise ValueError(
                "target='ema' needs one average of the parameters; of several averages, choose with a function such as "
                "target=lambda context: context.ema[0]"
            )
        return context.ema

    return average


def _next(teacher: Teacher | None, solver: Solver | None) -> Callable[..., Array]:
    """(context, cond, ends, x_t, cur, nxt) -> x_s, for one level per example, fields [B, 1, ...]."""
    if teacher is None:
        if solver is not None:
            raise ValueError("without a teacher there is no flow to solve: leave out solver, or give teacher")
        return lambda context, cond, ends, x, cur, nxt: q_sample(ends.x0, ends.eps, nxt)
    step = flow_step(heun() if solver is None else solver)
    return lambda context, cond, ends, x, cur, nxt: step(denoiser_of(teacher, context, cond), x, cur, nxt)
