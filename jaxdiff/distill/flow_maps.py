"""Flow maps (Boffi et al. 2024, 2025): students that jump between any two levels, by one of three identities.

With Psi(x, t, s) the student's jump from t to s and b the velocity of the probability flow,

    Lagrangian   d/ds Psi(x_t, t, s) = b(Psi(x_t, t, s), s)
    Eulerian     d/dt Psi(x_t, t, s) = 0 along dx_t/dt = b(x_t, t)
    semigroup    Psi(x_t, t, s) = Psi(Psi(x_t, t, m), m, s)

The jump is the exact step of the student's x0_hat, so that Psi(x, t, t) = x for every network, and its x0_hat at s = t
is the denoiser. Without a teacher the pairs with s = t train it on the data (self-distillation), and a share of them is
needed; with a teacher the target there is the teacher's.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.distill.base import Context, Distance, Teacher, TimePairs, denoiser_of, split_inputs
from jaxdiff.distill.distances import squared
from jaxdiff.distill.jumps import (
    Step,
    between,
    check,
    check_difference,
    derivative,
    draw,
    jump,
    two_jumps,
    two_time_denoiser,
    upward,
    velocity,
)
from jaxdiff.levels import append_axes
from jaxdiff.parameterize import target
from jaxdiff.processes.base import Process
from jaxdiff.types import Apply, Batch, FlowMap, Loss, Metrics, Params, Prediction

__all__ = ["eulerian", "lagrangian", "semigroup"]


@factory
def lagrangian(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs,
    teacher: Teacher | None = None,
    distance: Distance = squared,
    dropout: bool = False,
) -> Loss:
    """d(d/ds Psi(x_t, t, s), sg(b(Psi, s))), Lagrangian distillation (Boffi et al. 2024, arXiv:2406.07507).

    Without a teacher, b(Psi, s) is the student's own velocity at its end point, and the data's where s = t: Lagrangian
    self-distillation (Boffi et al. 2025, arXiv:2505.18825). The gradient passes through the derivative, reverse over
    forward mode, and not through b.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F, which is given cond["next_noise"]; in float32, since the
            gradient passes through its derivative.
        process: any, differentiable at the times.
        prediction: any.
        pairs: the times t and s, sigma > 0 at both; see `sorted_pairs`.
        teacher: the denoiser to distill; None: the data.
        distance: of the two velocities, in units of x per time.
        dropout: whether the network takes `key=` for dropout; all calls have the same mask.

    Returns:
        the loss of ((params, Context), key, batch); no metrics.
    """
    check(apply, process, prediction, pairs, teacher=teacher, distance=distance)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)
        student = two_time_denoiser(apply, params, prediction, step, dropout=dropout)

        def end(s: Array) -> Array:
            nxt = process(s)
            return jump(step.x, student(step.x, step.cur, nxt), step.cur, nxt)

        z, moved = jax.jvp(end, (step.s,), (jnp.ones_like(step.s),))
        z = jax.lax.stop_gradient(z)
        x0 = (
            student(z, step.nxt, step.nxt) if teacher is None else denoiser_of(teacher, context, step.cond)(z, step.nxt)
        )
        wanted = velocity(process, z, x0, step.s)
        if teacher is None:
            wanted = _where_equal(step, velocity(process, step.x, step.x0, step.t), wanted)
        return jnp.mean(step.weight * distance(moved, jax.lax.stop_gradient(wanted))), {}

    return loss


@factory
def eulerian(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs,
    teacher: Teacher | None = None,
    jvp_apply: Apply | None = None,
    difference: float | None = None,
    distance: Distance = squared,
    dropout: bool = False,
) -> Loss:
    """d(F, sg(F - k dPsi/dt)), with dPsi/dt = d/dt Psi + grad Psi b(x_t, t), which is 0 for a flow map.

    Eulerian distillation (Boffi et al. 2024, arXiv:2406.07507), and self-distillation (2025, arXiv:2505.18825). Its
    gradient is that of MeanFlow (Geng et al. 2025, arXiv:2505.13447), which this loss is on `Flow`; with s clean it is
    continuous-time consistency training. No gradient passes through the derivative; k makes the target that of
    denoising at s = t.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F, which is given cond["next_noise"].
        process: any, differentiable at the times.
        prediction: any.
        pairs: the times t and s, sigma > 0 at t; see `sorted_pairs`.
        teacher: the denoiser whose velocity b is; None: that of the data and its noise, whose mean is the flow's.
        jvp_apply: the network for the derivative; None is `apply`. Where `apply` computes in bfloat16, pass the same
            network in float32: derivatives in bfloat16 are too coarse.
        difference: take dPsi/dt as the central difference between t + difference and t - difference, as in `mean_flow`;
            t - difference must be a time of the process with noise, and close to its noisiest time the upper one is
            half way to it.
        distance: of the network's outputs.
        dropout: whether the network takes `key=` for dropout.

    Returns:
        the loss of ((params, Context), key, batch); no metrics.

    Raises:
        ValueError: difference is not positive.
    """
    check(apply, process, prediction, pairs, jvp_apply=jvp_apply, teacher=teacher, distance=distance)
    check_difference(difference)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)
        x0 = step.x0 if teacher is None else denoiser_of(teacher, context, step.cond)(step.x, step.cur)

        def end(student: FlowMap, x: Array, t: Array) -> tuple[Array, Array]:
            cur = process(t)
            x0_hat = student(x, cur, step.nxt)
            return jump(x, x0_hat, cur, step.nxt), x0_hat

        along = velocity(process, step.x, x0, step.t), jnp.ones_like(step.t)
        of = lambda apply: partial(end, two_time_denoiser(apply, params, prediction, step, dropout=dropout))  # noqa: E731
        exact = None if jvp_apply is None else of(jvp_apply)
        up = upward(process, step.t, difference)
        (_, x0_hat), (moved, _) = derivative(of(apply), (step.x, step.t), along, difference, up=up, exact=exact)
        # At s = t, dPsi/dt is the difference of the velocities of x0 and x0_hat, which is rate (x0 - x0_hat).
        cur, slope = (f.expand_to(step.x) for f in jax.jvp(process, (step.t,), along[1:]))
        rate = slope.alpha - cur.alpha * slope.sigma / cur.sigma
        return _of_outputs(prediction, distance, step, x0_hat, x0_hat + moved / rate), {}

    return loss


@factory
def semigroup(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs,
    teacher: Teacher | None = None,
    distance: Distance = squared,
    dropout: bool = False,
) -> Loss:
    """d(F, sg(F of two jumps)): a jump from t to s learns to end where two do, by way of an m between, drawn uniformly.

    Progressive flow map matching (Boffi et al. 2024, arXiv:2406.07507), progressive self-distillation (2025,
    arXiv:2505.18825). No derivatives are needed.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F, which is given cond["next_noise"].
        process: any.
        prediction: any.
        pairs: the times t and s, sigma > 0 at t; see `sorted_pairs`. Those with s = t are necessary here.
        teacher: the denoiser that is the target where s = t; None: the data.
        distance: of the network's outputs.
        dropout: whether the network takes `key=` for dropout; all calls have the same mask.

    Returns:
        the loss of ((params, Context), key, batch); no metrics.
    """
    check(apply, process, prediction, pairs, teacher=teacher, distance=distance)

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)
        student = two_time_denoiser(apply, params, prediction, step, dropout=dropout)
        mid = process(between(step.more, step.t, step.s))
        x0 = step.x0 if teacher is None else denoiser_of(teacher, context, step.cond)(step.x, step.cur)
        wanted = _where_equal(step, x0, two_jumps(student, step.x, step.cur, mid, step.nxt))
        return _of_outputs(prediction, distance, step, student(step.x, step.cur, step.nxt), wanted), {}

    return loss


def _where_equal(step: Step, same: Array, other: Array) -> Array:
    """`same` for the examples with s = t."""
    return jnp.where(append_axes(step.s == step.t, same.ndim), same, other)


def _of_outputs(prediction: Prediction, distance: Distance, step: Step, x0_hat: Array, wanted: Array) -> Array:
    """The loss of two estimates of x_0 as the network's outputs, of which the second is the target."""
    F, of_target = (target(prediction, x0, step.x, step.cur) for x0 in (x0_hat, wanted))
    return jnp.mean(step.weight * distance(F, jax.lax.stop_gradient(of_target)))
