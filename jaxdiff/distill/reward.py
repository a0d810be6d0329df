"""Reward fine-tuning: the gradient of a reward of samples through the last steps of the sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory, is_traced
from jaxdiff.distill.base import Teacher, split_inputs
from jaxdiff.levels import Level, check_grid
from jaxdiff.losses import split_batch
from jaxdiff.parameterize import denoiser
from jaxdiff.sample import sample, sample_state
from jaxdiff.solvers.base import Solver, check_one_level, check_solver, known_denoiser
from jaxdiff.types import Apply, Batch, Denoiser, Loss, Metrics, Prediction

__all__ = ["reward_loss"]


@factory
def reward_loss(
    apply: Apply,
    levels: Level,
    prediction: Prediction,
    reward: Callable[[Array, Any], Array],
    *,
    solver: Solver,
    last: int,
    reference: Teacher | None = None,
    kl: float = 0.0,
) -> Loss:
    """-reward(x_0) of samples, differentiated through their last steps (Clark et al. 2023, DRaFT-K, arXiv:2309.17400).

    Without a penalty a reward is pursued at any price: `kl` times the KL divergence of the sampler's path from the
    reference, sum_steps (SNR_s - SNR_t) / 2 |x0_hat - x0_ref|^2 (Kingma et al. 2021, arXiv:2107.00630, eq. 13), holds
    it where the reference is. With all steps, DDPM's and from pure noise, the optimum is then p_ref(x_0)
    exp(reward / kl), normalized.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F.
        levels: the sampler's grid, fields [N + 1].
        prediction: the network's prediction.
        reward: (x_0 [B, ...], condition) -> [B].
        solver: the sampler's, e.g. `solvers.ddim(eta=1.0)`; where there is a penalty, one that evaluates the denoiser
            once a step, at its start.
        last: number of steps through which the gradient goes, in 1..N; the memory of backward passes grows with its
            root. The samples are those of all N steps.
        reference: the network at the beginning, e.g. `teacher(apply, prediction)`.
        kl: factor of the penalty, per unit of the reward; it counts the last steps, without one to sigma = 0.

    Returns:
        the loss; of a batch's "x" only the shape is used, for the samples have the condition of the batch. Metrics:
        "reward", and with a penalty "kl", means over the batch.

    Raises:
        ValueError: a function of another signature, not a grid or a solver, `last` outside 1..N, kl < 0, a penalty
            without a reference, of the step to sigma = 0 alone, or with a solver of several evaluations.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_function("reward", reward, "(x0, cond) -> [B]")
    check_grid(levels)
    check_solver(solver)
    check_number("kl", kl, low=0.0)
    steps = len(levels.t) - 1
    if not 1 <= last <= steps:
        raise ValueError(f"last must lie between 1 and the grid's {steps} steps, got {last}")
    if kl:
        check_one_level(solver)
    if kl and (reference is None or solver.nfe != 1):
        raise ValueError("a KL penalty needs a reference, and a solver of one evaluation a step")
    if kl and last == 1 and not is_traced(levels.sigma) and levels.sigma[-1] == 0:
        raise ValueError("the step to sigma = 0 is not penalized: last must be at least 2, or kl 0")
    early, late = levels.at(slice(None, steps - last + 1)), levels.at(slice(steps - last, None))

    def loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        eps_key, early_key, late_key = jax.random.split(key, 3)
        _, eps, cond = split_batch(batch, eps_key)
        x, begun = levels.sigma[0].astype(eps.dtype) * eps, solver
        if last < steps:
            still = denoiser(apply, jax.lax.stop_gradient(params), prediction, cond)
            x, history = sample_state(still, solver, early, x, early_key)
            begun = solver._replace(init=lambda x: history)
        denoise = denoiser(apply, params, prediction, cond)
        if not kl:
            earned = reward(sample(denoise, begun, late, x, late_key, remat=True), cond)
            return -jnp.mean(earned), {"reward": jnp.mean(earned)}
        assert reference is not None
        counting = _with_kl(begun, reference(context, cond))
        x0, (_, apart) = sample_state(denoise, counting, late, x, late_key, remat=True)
        earned = reward(x0, cond)
        return jnp.mean(kl * apart - earned), {"reward": jnp.mean(earned), "kl": jnp.mean(apart)}

    return loss


def _with_kl(solver: Solver, reference: Denoiser) -> Solver:
    """The solver, with the divergence of its path from the reference's, [B], in its state."""

    def init(x: Array) -> Any:
        return solver.init(x), jnp.zeros(x.shape[0], x.dtype)

    def step(denoise: Denoiser, key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> Any:
        inner, apart = state
        x0 = denoise(x, cur)
        away = jnp.sum(jnp.square(x0 - reference(x, cur)).reshape(len(x), -1), axis=1)
        noisy = nxt.sigma > 0
        gained = jnp.where(noisy, nxt._replace(sigma=jnp.where(noisy, nxt.sigma, 1)).snr - cur.snr, 0)
        x, inner = solver.step(known_denoiser(solver, x, cur, x0), key, x, inner, cur, nxt)
        return x, (inner, apart + gained.astype(x.dtype) / 2 * away)

    return solver._replace(init=init, step=step)
