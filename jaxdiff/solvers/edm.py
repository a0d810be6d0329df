"""The solvers of EDM (Karras et al. 2022): Euler and Heun, deterministic or with churn.

The probability-flow ODE is dx = D dalpha + E dsigma, with the denoiser D and its noise E = (x - alpha D) / sigma. In
this form Euler's and Heun's methods need no process and are finite at alpha = 0. They are the paper's for alpha = 1,
and the usual ones of flow matching for alpha = 1 - sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.levels import Level, from_x0, safe_sqrt, typed_levels
from jaxdiff.noise import normal_like
from jaxdiff.processes import Process
from jaxdiff.solvers.base import Solver, init_empty, select_level
from jaxdiff.types import Denoiser

__all__ = ["Churn", "add_churn", "euler", "heun"]

Churn = float | Array | Callable[[Level], float | Array]


@factory
def euler(process: Process | None = None, churn: Churn | None = None, s_noise: float | Array = 1.0) -> Solver:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 2, lines 4-8).

    Args:
        process: needed with churn, for the time of the raised level.
        churn: gamma, the relative increase of the noise before each step: the paper's min(S_churn / N, sqrt(2) - 1), or
            a function of the level, for S_tmin and S_tmax; may be traced. None adds no noise.
        s_noise: standard deviation of the added noise; the paper's S_noise.

    Returns:
        a solver of order 1; without churn it is DDIM.

    Raises:
        ValueError: churn without a process; a churn or s_noise that is negative or not finite.
    """
    raise_noise = add_churn(process, churn, s_noise)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, cur = raise_noise(key, x, cur)
        x0, eps = from_x0(denoise(x, cur), x, cur)
        return nxt.alpha * x0 + nxt.sigma * eps, state

    return Solver(init_empty, step, stochastic=churn is not None)


@factory
def heun(process: Process | None = None, churn: Churn | None = None, s_noise: float | Array = 1.0) -> Solver:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, algorithms 1 and 2).

    Args:
        process: needed with churn, for the time of the raised level.
        churn: gamma, the relative increase of the noise before each step: the paper's min(S_churn / N, sqrt(2) - 1), or
            a function of the level, for S_tmin and S_tmax; may be traced. None adds no noise.
        s_noise: standard deviation of the added noise; the paper's S_noise.

    Returns:
        a solver of order 2 with two evaluations per step; the step to sigma = 0 is Euler's.

    Raises:
        ValueError: churn without a process; a churn or s_noise that is negative or not finite.
    """
    raise_noise = add_churn(process, churn, s_noise)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, cur = raise_noise(key, x, cur)
        x0, eps = from_x0(denoise(x, cur), x, cur)
        predicted = nxt.alpha * x0 + nxt.sigma * eps
        # At sigma = 0 eps is undefined, and so is the correction; a safe level keeps the unused branch finite,
        # gradients included.
        not_last = nxt.sigma > 0
        safe = select_level(not_last, cur, nxt)
        x0_ahead, eps_ahead = from_x0(denoise(predicted, safe), predicted, safe)
        d_alpha, d_sigma = nxt.alpha - cur.alpha, nxt.sigma - cur.sigma
        corrected = x + d_alpha * 0.5 * (x0 + x0_ahead) + d_sigma * 0.5 * (eps + eps_ahead)
        return jnp.where(not_last, corrected, predicted), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=churn is not None)


def add_churn(process: Process | None, churn: Churn | None, s_noise: float | Array):
    """(key, x, level) -> (x, level) with sigma / alpha multiplied by 1 + churn (algorithm 2, lines 4-6)."""
    check_number("s_noise", s_noise, low=0)
    if churn is None:
        return lambda key, x, cur: (x, cur)
    if process is None:
        raise ValueError(
            "churn raises the noise to a level between the grid's, whose time only the process can give: pass process="
        )
    check_number("churn", churn, low=0)

    def raise_noise(key: Array, x: Array, cur: Level) -> tuple[Array, Level]:
        log_share = jnp.log1p(jnp.asarray(churn(cur) if callable(churn) else churn, x.dtype))
        # The noise of pure noise cannot increase; a safe lam keeps the unused branch finite, gradients included.
        pure = cur.alpha == 0
        lam = jnp.where(pure, 0, cur.lam)
        time = process.time((lam - log_share).astype(jnp.result_type(float)))
        raised = typed_levels(process(time), x)
        # The share of new noise, 1 - SNR_raised / SNR_cur, at the level that exists (a table ends); 0 for churn = 0,
        # despite rounding.
        share = jnp.clip(-jnp.expm1(2 * (raised.lam - lam)), 0, -jnp.expm1(-2 * log_share))
        std = jnp.asarray(s_noise, x.dtype) * raised.sigma * safe_sqrt(share)
        noisier = raised.alpha / jnp.where(pure, 1, cur.alpha) * x + std * normal_like(key, x)
        return jnp.where(pure, x, noisier), select_level(~pure, cur, raised)

    return raise_noise
