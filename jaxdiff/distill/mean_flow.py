"""MeanFlow (Geng et al. 2025): one jump by the mean velocity of the flow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, describe, factory, is_traced
from jaxdiff.distill.base import Context, Distance, Teacher, TimePairs, denoiser_of, split_inputs
from jaxdiff.distill.distances import adaptive
from jaxdiff.distill.jumps import check, check_difference, derivative, draw, upward
from jaxdiff.distill.sorted_pairs import sorted_pairs
from jaxdiff.levels import append_axes, from_x0, velocity
from jaxdiff.parameterize import network_output, scalings, with_next_noise
from jaxdiff.processes.base import Process
from jaxdiff.times import logit_normal
from jaxdiff.types import Apply, Batch, Loss, Metrics, Params, Prediction

__all__ = ["mean_flow"]


@factory
def mean_flow(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    pairs: TimePairs | None = None,
    teacher: Teacher | None = None,
    improved: bool = False,
    jvp_apply: Apply | None = None,
    difference: float | None = None,
    distance: Distance | None = None,
    dropout: bool = False,
) -> Loss:
    """d(u, sg(v - (t - s) du/dt)) for the mean velocity u(x, t, s) (Geng et al. 2025, arXiv:2505.13447).

    The network is given both ends of the step, cond["next_noise"] the second. x_s = x_t - (t - s) u is a step of
    `solvers.flow_map`. At the minimum the loss is not 0, since v is the velocity of single examples, not their mean.

    The derivative passes through the network's noise input. A teacher that is given 1000 t, by `time_scaled(velocity)`,
    is smooth only at a distance: most of its derivative is a ripple of the embedding, of which MeanFlow learns nothing.
    Give the network t itself, or take the derivative as a `difference`.

    Args:
        apply: the network, (params, x, noise[B], cond) -> u.
        process: `processes.Flow()`; for others see `eulerian`, which is the same loss there.
        prediction: `velocity`, or it with another noise input.
        pairs: the times t and s; None is `sorted_pairs(times.logit_normal(-0.4, 1.0), 0.75)`.
        teacher: gives the velocity v of its probability flow; None: v = eps - x_0.
        improved: differentiate along the network's own velocity u(x, t, t), not along v, whose variance it lacks (Geng
            et al. 2025, "Improved Mean Flows", arXiv:2512.02012); costs one more evaluation.
        jvp_apply: the network for the derivative; None is `apply`. Where `apply` computes in bfloat16, pass the same
            network in float32: derivatives in bfloat16 are too coarse.
        difference: du/dt is the central difference between t + difference and t - difference, along the flow, for
            networks whose derivative by the time is rough; costs one more evaluation. Close to the noisiest time the
            upper one is half way to it. None is the derivative itself.
        distance: of the two velocities; None is `adaptive(1.0, 0.01)`.
        dropout: whether the network takes `key=` for dropout.

    Returns:
        the loss of ((params, Context), key, batch); metrics: "mse", of the velocity, with the noise of v.

    Raises:
        ValueError: another process or prediction; difference is not positive.
    """
    pairs = sorted_pairs(logit_normal(-0.4, 1.0), 0.75) if pairs is None else pairs
    check(apply, process, prediction, pairs, jvp_apply=jvp_apply, teacher=teacher, distance=distance)
    _check_flow(process, prediction)
    check_difference(difference)
    distance = adaptive(1.0, 0.01) if distance is None else distance

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        step = draw(process, pairs, context.step, key, batch)

        def u(x: Array, t: Array, s: Array, apply: Apply = apply) -> Array:
            scales = scalings(prediction, process(t), x)
            cond = with_next_noise(step.cond, prediction, process(s), x)
            return network_output(apply, params, scales, x, cond, key=step.key if dropout else None)[0]

        x, t, s = step.x, step.t, step.s
        v = step.eps - step.x0
        if teacher is not None:
            v = velocity(from_x0(denoiser_of(teacher, context, step.cond)(x, step.cur), x, step.cur))
        along = jax.lax.stop_gradient(u(x, t, t)) if improved else v
        exact = None if jvp_apply is None else lambda x, t: u(x, t, s, jvp_apply)
        tangents = along, jnp.ones_like(t)
        up = upward(process, t, difference)
        mean, slope = derivative(lambda x, t: u(x, t, s), (x, t), tangents, difference, up=up, exact=exact)
        gap = append_axes((t - s).astype(x.dtype), x.ndim)
        wanted = jax.lax.stop_gradient(v - gap * slope)
        each = distance(mean, wanted)
        return jnp.mean(step.weight * each), {"mse": jnp.mean(jnp.square(mean - wanted))}

    return loss


def _check_flow(process: Process, prediction: Prediction) -> None:
    t = 0.3
    got = _scales(process, prediction, np.full((1,), t, np.float32))
    if not is_traced(got) and not np.allclose(np.ravel(got), [1 - t, t, 1, -t, 1], atol=1e-5):
        raise ValueError(
            f"mean_flow is for processes.Flow() and the prediction velocity, got {describe(process)} and "
            f"{describe(prediction)}; `eulerian` is the same loss for any"
        )


@concrete
def _scales(process: Process, prediction: Prediction, t: np.ndarray) -> list[Array]:
    level = process(jnp.asarray(t))
    s = prediction(level)
    return [jnp.broadcast_to(field, (1,)) for field in (level.alpha, level.sigma, s.skip, s.out, s.inp)]
