"""Consistency models in continuous time: the step from t to s is infinitely small, and its error a derivative."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Context, Teacher, check_boundary, check_parts, denoiser_of, split_inputs
from jaxdiff.distill.jumps import check_difference, derivative
from jaxdiff.levels import Level, from_x0, q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import check_key
from jaxdiff.parameterize import check_network_time, denoiser, noise_input, scalings
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process, to_float
from jaxdiff.times import log_normal
from jaxdiff.types import Apply, Batch, Denoiser, Loss, Metrics, Params, Prediction, TimeSampler

__all__ = ["continuous_consistency"]


@factory
def continuous_consistency(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    teacher: Teacher | None = None,
    times: TimeSampler | None = None,
    sigma_data: float = 0.5,
    warmup_steps: int = 10_000,
    c: float = 0.1,
    log_variance: Callable[[Params, Array], Array] | None = None,
    jvp_apply: Apply | None = None,
    difference: float | None = None,
    dropout: bool = False,
) -> Loss:
    """The loss of sCM, a consistency model in continuous time (Lu and Song 2024, arXiv:2410.11081).

    In the angle theta = arctan(sigma / (alpha sigma_data)), the tangent is

        g = cos(theta) ((1 - r) cot(theta) (f - x_0) + r df/dtheta),   r = min(1, step / warmup_steps),

    with df/dtheta along dx/dtheta, the velocity of the data x_0 and its noise (sCT) or, with a teacher, that of its
    x0_hat (sCD). With r = 0 the optimum is the diffusion model, with r = 1 the consistency function. The loss is the
    mean over dimensions of

        |F - sg F - g / (|g| + c)|^2 exp(-u) + u,   F = (cos(theta) x - f) / (sigma_data sin(theta)),

    where |g| is the root mean square of an example, and the log-variance u is 0 unless it is learned. This is the
    paper's loss on `processes.Cosine` with `parameterize.v`, and the same function f on any other process. F - sg F is
    zero, but has a gradient; the loss's value says little without `log_variance`.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F. It is differentiated with respect to the noise input: a
            time embedding with high frequencies makes that derivative large; or take a `difference`.
        process: the forward process, differentiable in t.
        prediction: what F is; with f(x, 0) = x for any F: velocity, v, eps, score, edm.
        teacher: a trained denoiser, see `distill.teacher`; None takes the velocity from the data.
        times: distribution of t; None is `times.log_normal(process, -1.0, 1.4)`.
        sigma_data: standard deviation of the data.
        warmup_steps: number of updates in which r grows to 1; 0 is r = 1.
        c: keeps the normalization finite where the tangent vanishes; > 0.
        log_variance: (params, noise[B]) -> [B], u, as for `losses.denoising_loss`.
        jvp_apply: the network for the derivative; None is `apply`. Where `apply` computes in bfloat16, pass the same
            network in float32: derivatives in bfloat16 are too coarse.
        difference: the derivative is the central difference of +- so much of log(sigma / alpha), along the flow, for
            networks whose own is rough; None is the derivative.
        dropout: whether the networks take `key=` for dropout; all evaluations then have the same mask.

    Returns:
        the loss, called with ((params, Context), key, batch), see `distill.context`; metrics: "tangent_norm", the mean
        of |g|.

    Raises:
        ValueError: a prediction without f(x, 0) = x; sigma_data, c or difference is not positive; warmup_steps < 0.
    """
    _check(apply, process, prediction, sigma_data=sigma_data, c=c, warmup_steps=warmup_steps)
    check_difference(difference)
    jvp_apply = apply if jvp_apply is None else jvp_apply
    check_function("jvp_apply", jvp_apply, "(params, x, noise, cond) -> F")
    check_parts(teacher)
    times = log_normal(process, -1.0, 1.4) if times is None else times
    check_function("times", times, "(key, batch) -> (t, weight)")

    def loss(inputs: tuple[Params, Context], key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        check_key(key)
        t_key, eps_key, net_key = jax.random.split(key, 3)
        x0, eps, cond = split_batch(batch, eps_key)
        t, weight = times(t_key, x0.shape[0])
        t = to_float(t)
        level = process(t)
        x = q_sample(x0, eps, level)
        if teacher is not None:
            x0, eps = from_x0(denoiser_of(teacher, context, cond)(x, level), x, level)
        drop_key = net_key if dropout else None
        r = jnp.minimum(jnp.asarray(context.step, x.dtype) / warmup_steps, 1) if warmup_steps else 1.0
        cos, sin = _angle(level.expand_to(x), sigma_data)
        # No gradient enters the derivative: it would be differentiated in reverse, too.
        constant = denoiser(jvp_apply, jax.lax.stop_gradient(params), prediction, cond, key=drop_key)
        df = _derivative(constant, process, (t, x), (x0, eps), difference)
        # f is evaluated here once: to take it from the difference would be another evaluation of the student.
        f = denoiser(apply, params, prediction, cond, key=drop_key)(x, level)
        g = ((1 - r) * jnp.square(cos) * (jax.lax.stop_gradient(f) - x0) + r * df) / sin
        size = jnp.sqrt(_mean(jnp.square(g)))  # of a constant, so that its derivative at 0 does not matter
        error = (f - jax.lax.stop_gradient(f)) / (sigma_data * sin) + g / (size.reshape(sin.shape) + c)
        each = _mean(jnp.square(error))
        if log_variance is not None:
            u = log_variance(params, noise_input(scalings(prediction, level, x), x))
            each = each * jnp.exp(-u) + u
        return jnp.mean(weight * each), {"tangent_norm": jnp.mean(size)}

    return loss


def _derivative(
    denoise: Denoiser, process: Process, at: tuple[Array, Array], along: tuple[Array, Array], difference: float | None
) -> Array:
    """cos(theta) sin(theta) df/dtheta along dx = x0 dalpha + eps dsigma, by one jvp.

    That is df / d log(sigma / alpha), whatever sigma_data, and finite at both ends. The factors are in the tangents, so
    that no large number passes through the network (Lu and Song 2024).
    """
    (t, x), (x0, eps) = at, along
    level, slope = jax.jvp(process, (t,), (jnp.ones_like(t),))
    dt = level.alpha * level.sigma / (level.alpha * slope.sigma - level.sigma * slope.alpha)
    by_t = slope.expand_to(x)
    dx = Level(dt, dt, dt).expand_to(x).t * (by_t.alpha * x0 + by_t.sigma * eps)
    return derivative(lambda x, t: denoise(x, process(t)), (x, t), (dx, dt), difference)[1]


def _angle(level: Level, sigma_data: float) -> tuple[Array, Array]:
    """cos(theta), sin(theta)."""
    size = jnp.hypot(sigma_data * level.alpha, level.sigma)
    return sigma_data * level.alpha / size, level.sigma / size


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=range(1, x.ndim))


def _check(
    apply: Apply, process: Process, prediction: Prediction, *, sigma_data: float, c: float, warmup_steps: int
) -> None:
    check_process(process)
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_network_time(apply, process, prediction)
    check_boundary(process, prediction)
    for name, value in (("sigma_data", sigma_data), ("c", c)):
        check_number(name, value)
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    check_number("warmup_steps", warmup_steps, low=0.0)
