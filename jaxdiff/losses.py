"""Losses: each factory returns a pure function (params, key, batch) -> (loss, metrics).

A batch is a dict: "x" is the clean data, [B, ...]; "eps" is its noise, like x, where that is not drawn anew (the pairs
of `distill.reflow`); all other entries are the condition, passed to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_inexact, describe, is_traced
from jaxdiff.guidance import drop_condition
from jaxdiff.guidance.base import split_variance
from jaxdiff.levels import check_variance, q_sample, with_learned_variance
from jaxdiff.likelihood.variational import check_table, variational_term
from jaxdiff.noise import check_key, normal_like
from jaxdiff.parameterize import check_network_time, denoiser, network_output, scalings, target, to_x0
from jaxdiff.processes import Discrete, Process
from jaxdiff.processes.base import check_process
from jaxdiff.times import default_times
from jaxdiff.types import Apply, Batch, Loss, Metrics, Params, Prediction, TimeSampler, Weight

__all__ = ["denoising_loss", "hybrid_loss", "latent_loss", "split_batch", "vlb_loss"]


def denoising_loss(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    weight: Weight | None = None,
    times: TimeSampler | None = None,
    null_cond: Any = None,
    cond_dropout: float = 0.0,
    dropout: bool = False,
    log_variance: Callable[[Params, Array], Array] | None = None,
) -> Loss:
    """The denoising loss E[w |F(inp x_t, noise) - (x_0 - skip x_t) / out|^2], for any prediction and weighting.

    Denoising score matching (Vincent 2011), the simple loss (Ho et al. 2020, arXiv:2006.11239, eq. 14), EDM's
    (Karras et al. 2022, arXiv:2206.00364, eq. 8) and conditional flow matching (Lipman et al. 2022, arXiv:2210.02747,
    eq. 9) are choices of its arguments.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F.
        process: the forward process.
        prediction: the network's prediction.
        weight: weight of the squared error of x_0, by level; None weights the error of F by 1.
        times: distribution of t; None is uniform up to the process's noisiest time, over 1..T for a beta table, and
            log-normal for EDM.
        null_cond: the null condition, for cond_dropout: like the condition, or some of its entries, with leading axis
            1.
        cond_dropout: probability of replacing an example's condition by the null condition, for classifier-free
            guidance.
        dropout: whether the network takes `key=` for dropout.
        log_variance: (params, noise[B]) -> [B], the log-variance u of the loss at a level; the loss is then L exp(-u) +
            u (Karras et al. 2023, arXiv:2312.02696, eq. 14-15).

    Returns:
        the loss, a mean over batch and dimensions; metrics: "mse", the unweighted mean squared error of F.

    Raises:
        ValueError: cond_dropout outside [0, 1], or without null_cond; no `times` for a process without a noisiest time;
            t in [0, 1] for a network that expects hundreds; a prediction that is undefined at a table's last time; from
            the loss, a batch without "x".
    """
    check_process(process)
    times = default_times(process) if times is None else times
    _check(apply, process, prediction, times)
    if weight is not None:
        check_function("weight", weight, "(level) -> [B]")
    _check_cond_dropout(cond_dropout, null_cond)

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        t_key, eps_key, drop_key, net_key = _keys(key)
        x0, eps, cond = split_batch(batch, eps_key)
        t, t_weight = times(t_key, x0.shape[0])
        level = process(t)
        x = q_sample(x0, eps, level)
        if cond_dropout > 0:
            cond = drop_condition(drop_key, cond, null_cond, cond_dropout)
        s = scalings(prediction, level, x)
        F, *_ = network_output(apply, params, s, x, cond, key=net_key if dropout else None)
        mse = _mean(jnp.square(F - target(prediction, x0, x, level)))
        each = mse
        if weight is not None:
            each = each * weight(level) * jnp.square(s.out).reshape(each.shape)
        if log_variance is not None:
            u = log_variance(params, s.noise.reshape(each.shape).astype(each.dtype))
            each = each * jnp.exp(-u) + u
        return jnp.mean(t_weight * each), {"mse": jnp.mean(mse)}

    return loss


def vlb_loss(
    apply: Apply,
    process: Discrete,
    prediction: Prediction,
    *,
    variance: str = "learned",
    times: TimeSampler | None = None,
) -> Loss:
    """The variational bound of a DDPM without the constant L_T, in bits per dimension (Ho et al. 2020, eq. 5).

    Args:
        apply: the network; returns (F, frac) if variance is "learned".
        process: the beta table.
        prediction: the network's prediction, usually `parameterize.zero_based(parameterize.eps)`.
        variance: "small", "large" or "learned", as for `solvers.ddpm`.
        times: distribution of the integer t; None is uniform over 1..T.

    Returns:
        the loss, T times the mean of the terms L_{t-1}; no metrics.

    Raises:
        ValueError: a process without a table of at least two betas; an unknown variance.
    """
    times = _table_times(process, times)
    _check(apply, process, prediction, times)
    check_variance(variance)

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        t_key, eps_key, *_ = _keys(key)
        x0, eps, cond = split_batch(batch, eps_key)
        t, t_weight = times(t_key, x0.shape[0])

        denoise = denoiser(apply, params, prediction, cond)
        mean = denoise if variance == "learned" else lambda x, level: split_variance(denoise(x, level))[0]
        term = variational_term(mean, process, x0, eps, t, variance=variance)
        return process.T * jnp.mean(t_weight * term), {}

    return loss


def hybrid_loss(
    apply: Apply,
    process: Discrete,
    prediction: Prediction,
    *,
    vlb_weight: float = 0.001,
    times: TimeSampler | None = None,
    null_cond: Any = None,
    cond_dropout: float = 0.0,
    dropout: bool = False,
) -> Loss:
    """L_simple + vlb_weight L_vlb, of which L_vlb trains the variance only (Nichol and Dhariwal 2021, eq. 16).

    arXiv:2102.09672. The mean in L_vlb takes no gradient; both terms share x_t and one evaluation of the network.

    Args:
        apply: the network; returns (F, frac).
        process: the beta table.
        prediction: the network's prediction.
        vlb_weight: the paper's lambda.
        times: distribution of the integer t; None is uniform over 1..T.
        null_cond, cond_dropout, dropout: as for `denoising_loss`.

    Returns:
        the loss; metrics: "mse" and "vlb", in bits per dimension.

    Raises:
        ValueError: a process without a table of at least two betas; cond_dropout outside [0, 1], or without null_cond.
    """
    times = _table_times(process, times)
    _check(apply, process, prediction, times)
    _check_cond_dropout(cond_dropout, null_cond)

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        t_key, eps_key, drop_key, net_key = _keys(key)
        x0, eps, cond = split_batch(batch, eps_key)
        t, t_weight = times(t_key, x0.shape[0])
        level = process(t)
        x = q_sample(x0, eps, level)
        if cond_dropout > 0:
            cond = drop_condition(drop_key, cond, null_cond, cond_dropout)
        s = scalings(prediction, level, x)
        F, frac = with_learned_variance(network_output(apply, params, s, x, cond, key=net_key if dropout else None))
        mse = _mean(jnp.square(F - target(prediction, x0, x, level)))
        x0_hat = jax.lax.stop_gradient(to_x0(s, x, F))
        vlb = process.T * variational_term(lambda x, level: (x0_hat, frac), process, x0, eps, t)
        return jnp.mean(t_weight * (mse + vlb_weight * vlb)), {
            "mse": jnp.mean(mse),
            "vlb": jnp.mean(t_weight * vlb),
        }

    return loss


def latent_loss(loss: Loss) -> Loss:
    """The loss of latents that are sampled anew in each step (Rombach et al. 2022, arXiv:2112.10752, sec. 3.1).

    Args:
        loss: a loss of a batch with "x".

    Returns:
        the loss of a batch with "mean" and "std" in place of "x", [B, ...] each: those of the autoencoder's Gaussian.

    Raises:
        ValueError: from the loss, a batch without them.
    """

    def drawn(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        if not {"mean", "std"} <= batch.keys():
            raise ValueError(f'a batch of latents holds "mean" and "std", got the entries {sorted(batch)}')
        check_key(key)
        draw_key, key = jax.random.split(key)
        mean, std = (batch[name].astype(jnp.float32) for name in ("mean", "std"))
        rest = {name: value for name, value in batch.items() if name not in ("mean", "std")}
        return loss(params, key, rest | {"x": mean + std * normal_like(draw_key, mean)})

    return drawn


def split_batch(batch: Batch, key: Array) -> tuple[Array, Array, Batch]:
    """The clean data, its noise, drawn from the key unless the batch has it, and the condition.

    Args:
        batch: "x", perhaps "eps", and the condition.
        key: key of the noise.

    Returns:
        (x0 [B, ...], eps, like x0, condition).

    Raises:
        ValueError: it is no dict, there is no "x", it is not floating-point, or "eps" has another shape.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f'a batch is a dict with the data under "x", got {describe(batch)}')
    if "x" not in batch:
        raise ValueError(f'a batch holds the data under "x", got the entries {sorted(batch)}')
    x0 = batch["x"]
    check_inexact('the batch\'s "x"', x0)
    eps = batch["eps"] if "eps" in batch else normal_like(key, x0)
    if eps.shape != x0.shape:
        raise ValueError(f'a batch\'s "eps" is the noise of its "x", of the shape {x0.shape}, got {eps.shape}')
    return x0, eps, {name: value for name, value in batch.items() if name not in ("x", "eps")}


def _check(apply: Apply, process: Process, prediction: Prediction, times: TimeSampler) -> None:
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_function("times", times, "(key, batch) -> (t, weight)")
    check_network_time(apply, process, prediction)
    if isinstance(process, Discrete) and not is_traced(process):
        prediction(process(jnp.asarray(process.T)))  # is it defined there? Times that are drawn in the loss are traced


def _check_cond_dropout(cond_dropout: float, null_cond: Any) -> None:
    if not 0 <= cond_dropout <= 1 or (cond_dropout > 0 and null_cond is None):
        raise ValueError(
            f"cond_dropout lies in [0, 1], and above 0 needs null_cond; got cond_dropout = {cond_dropout}, "
            f"null_cond = {null_cond}"
        )


def _keys(key: Array) -> Array:
    check_key(key)
    return jax.random.split(key, 4)  # t, eps, condition dropout, the network's dropout


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=range(1, x.ndim))


def _table_times(process: Process, times: TimeSampler | None) -> TimeSampler:
    check_table(process)
    return default_times(process) if times is None else times
