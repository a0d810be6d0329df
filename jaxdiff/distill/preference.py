"""Direct preference optimization: of two examples, the preferred one is to be denoised better than by the reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Teacher, split_inputs
from jaxdiff.distill.distances import squared
from jaxdiff.levels import q_sample
from jaxdiff.losses import split_batch
from jaxdiff.parameterize import check_network_time, denoiser
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.times import default_times
from jaxdiff.types import Apply, Batch, Denoiser, Loss, Metrics, Prediction, TimeSampler, Weight
from jaxdiff.weights import simple

__all__ = ["preference_loss"]


@factory
def preference_loss(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    *,
    reference: Teacher,
    beta: float,
    weight: Weight = simple,
    times: TimeSampler | None = None,
    dropout: bool = False,
) -> Loss:
    """-log sigmoid(-beta / 2 w [(e_w - e_w,ref) - (e_l - e_l,ref)]) (Wallace et al. 2023, Diffusion-DPO, eq. 14).

    arXiv:2311.12908. e is the squared error of x_0, of the network and of the reference, at the same time and noise for
    both examples.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F.
        process: the forward process.
        prediction: the network's prediction.
        reference: the network at the beginning, e.g. `teacher(apply, prediction)`.
        beta: how near to the reference the network stays, of errors that are means over the dimensions; the authors'
            code has 5,000 for Stable Diffusion.
        weight: weight of the squared error of x_0, by level; the default is the error of eps.
        times: distribution of t; None is that of `losses.denoising_loss`.
        dropout: whether the network takes `key=` for dropout, which is the same for both examples.

    Returns:
        the loss of batches with the preferred example "x" and the other one, "rejected", like x. Metrics: "accuracy",
        the share of pairs in which the preferred one gains, and "mse", the error of x_0 of the preferred.

    Raises:
        ValueError: a function of another signature, beta < 0; from the loss, a batch without "rejected".
    """
    check_process(process)
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_network_time(apply, process, prediction)
    check_function("reference", reference, "(context, cond) -> denoiser")
    check_function("weight", weight, "(level) -> [B]")
    check_number("beta", beta, low=0.0)
    times = default_times(process) if times is None else times
    check_function("times", times, "(key, batch) -> (t, weight)")

    def loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        if "rejected" not in batch or batch["rejected"].shape != batch["x"].shape:
            raise ValueError('a batch of preferences holds the other example of each pair as "rejected", like "x"')
        t_key, eps_key, net_key = jax.random.split(key, 3)
        preferred, eps, cond = split_batch(batch, eps_key)
        rejected, cond = batch["rejected"], {name: a for name, a in cond.items() if name != "rejected"}
        t, t_weight = times(t_key, len(preferred))
        level = process(t)
        denoise = denoiser(apply, params, prediction, cond, key=net_key if dropout else None)
        still = reference(context, cond)

        def error(denoise: Denoiser, x0: Array) -> Array:
            return squared(denoise(q_sample(x0, eps, level), level), x0)

        won = error(denoise, preferred)
        gain = -weight(level) * (won - error(still, preferred) - error(denoise, rejected) + error(still, rejected))
        metrics = {"accuracy": jnp.mean((gain > 0).astype(gain.dtype)), "mse": jnp.mean(won)}
        return -jnp.mean(t_weight * jax.nn.log_sigmoid(beta / 2 * gain)), metrics

    return loss
