"""A picture found by optimization, with a denoiser as its regularizer (RED-diff, Mardani et al. 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_denoiser, check_function, check_number
from jaxdiff.guidance.base import per_example, split_variance
from jaxdiff.inverse.base import check_operator, check_std, measure
from jaxdiff.inverse.operators.base import Operator
from jaxdiff.levels import Level, from_x0, q_sample
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.types import Batch, Denoiser, Loss, Metrics, Params, TimeSampler, Weight

__all__ = ["red_diff"]


def red_diff(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: Array,
    *,
    std: float | Array,
    times: TimeSampler,
    weight: Weight | None = None,
    scale: float | Array = 0.25,
) -> Loss:
    """|A mu - y|^2 / (2 std^2) + scale w (eps_hat - eps) . mu (RED-diff, Mardani et al. 2023, arXiv:2305.04391).

    eps_hat is not differentiated. A point estimate, whose parameters are the picture itself: it has no spread, and for
    Gaussian data it is not the posterior mean either.

    Args:
        denoise: (x_t, level) -> x0_hat; not differentiated.
        process: the forward process.
        operator: A.
        y: measurements, [B, *measured].
        std: standard deviation of their noise, positive: a number or [B]; may be traced.
        times: distribution of t, e.g. `times.uniform()`.
        weight: w, by level; None is the paper's sigma / alpha.
        scale: the paper's lambda; may be traced.

    Returns:
        the loss (mu [B, ...], key, batch) -> (mean over the examples, metrics "misfit" and "prior", the two terms);
        the key may be [B] keys; of the batch nothing is used, it may be {}.

    Raises:
        ValueError: std <= 0, y as for `tmpd`, or not a function.
    """
    check_denoiser("denoise", denoise)
    check_process(process)
    check_operator(operator, y)
    check_std(std, positive=True)
    check_number("scale", scale)
    check_function("times", times, "(key, batch) -> (t, weight)")
    weigh = weight or (lambda level: level.sigma / level.alpha)
    check_function("weight", weigh, "(level) -> [B]")

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        mu = params
        t, t_weight = _times(times, fold_in(key, 0), mu.shape[0])
        level = Level(*(jnp.asarray(field) for field in process(t)))
        level = level._replace(alpha=level.alpha.astype(mu.dtype), sigma=level.sigma.astype(mu.dtype))
        eps = normal_like(fold_in(key, 1), mu)
        x = q_sample(jax.lax.stop_gradient(mu), eps, level)
        away = from_x0(split_variance(denoise(x, level))[0], x, level).eps - eps
        residual = y - measure(operator, y, mu)
        square = jnp.sum((jnp.conj(residual) * residual).real.reshape(len(mu), -1), axis=1)
        misfit = jnp.mean(0.5 * square / jnp.square(per_example("std", std, square)))
        inner = jnp.sum((away * mu).reshape(len(mu), -1), axis=1)
        prior = jnp.mean((t_weight * weigh(level)).astype(mu.dtype) * inner)
        return misfit + jnp.asarray(scale, mu.dtype) * prior, {"misfit": misfit, "prior": prior}

    return loss


def _times(times: TimeSampler, key: Array, count: int) -> tuple[Array, Array]:
    """Times and their weights; with one key per example each example's own."""
    if key.ndim == 0:
        return times(key, count)
    t, weight = jax.vmap(lambda k: times(k, 1))(key)
    return t[:, 0], weight[:, 0]
