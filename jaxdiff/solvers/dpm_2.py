"""k-diffusion's DPM2, the midpoint method with the midpoint in log(sigma / alpha), and its ancestral form."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0
from jaxdiff.noise import white
from jaxdiff.processes import Process
from jaxdiff.solvers.ancestral import ancestral_step, check_eta
from jaxdiff.solvers.base import Solver, init_empty, lambda_step, level_at_lambda, with_process
from jaxdiff.solvers.edm import Churn, add_churn
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["dpm_2", "dpm_2_ancestral"]


@factory
def dpm_2(process: Process | None = None, churn: Churn | None = None, s_noise: float | Array = 1.0) -> Solver:
    """The midpoint method in sigma / alpha, with the midpoint in lam (k-diffusion's `sample_dpm_2`).

    Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) with the inner point of DPM-Solver-2 (Lu et al. 2022,
    arXiv:2206.00927).

    Args:
        process: gives the time of the midpoint. Without it that time is interpolated: exact for EDM and Flow, and where
            the network's noise input is lam; elsewhere it is off by O(h^2). Needed with churn.
        churn: gamma, the relative increase of the noise before each step, as for `heun`; may be traced.
        s_noise: standard deviation of the added noise.

    Returns:
        a solver of order 2 with two evaluations per step; the steps from pure noise and to sigma = 0 are Euler's.

    Raises:
        ValueError: churn without a process.
    """
    raise_noise = add_churn(process, churn, s_noise)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, cur = raise_noise(key, x, cur)
        return _midpoint(denoise, process, x, cur, nxt, nxt), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=churn is not None)


@factory
def dpm_2_ancestral(
    eta: float | Array = 1.0,
    s_noise: float | Array = 1.0,
    process: Process | None = None,
    *,
    noise_sampler: NoiseSampler = white,
) -> Solver:
    """`dpm_2` to sigma_down, then noise up to sigma (k-diffusion's `sample_dpm_2_ancestral`).

    Args:
        eta: share of the posterior's noise, in [0, 1]; may be traced. At 0 it is `dpm_2`, and a plain 0 draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        process: gives the time of the midpoint, as for `dpm_2`.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of weak order 2 with two evaluations per step; the steps from pure noise and to sigma = 0 are
        `euler_ancestral`'s.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    deterministic = check_eta(eta)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        down, up = ancestral_step(eta, x, cur, nxt)
        x = _midpoint(denoise, process, x, cur, nxt, down)
        return x if deterministic else x + jnp.asarray(s_noise, x.dtype) * up * noise_sampler(key, x, cur, nxt), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=not deterministic)


def _midpoint(denoise, process: Process | None, x: Array, cur: Level, nxt: Level, down: Level) -> Array:
    """The midpoint step from `cur` to `down`, which has no more noise than `nxt`."""
    h, finite = lambda_step(cur, down)
    # With eta <= 1 the midpoint to `down` is not past `nxt`; at eta = 1 it is `nxt`.
    safe = jnp.where(cur.alpha > 0, cur.lam, jnp.where(nxt.sigma > 0, nxt.lam, 0))
    mid = level_at_lambda(cur, nxt, jnp.where(finite, cur.lam + 0.5 * h, safe))
    x0, eps = from_x0(denoise(x, cur), x, cur)
    x0_mid = with_process(denoise, process)(mid.alpha * x0 + mid.sigma * eps, mid)
    # x / alpha + (s_down - s_cur) eps_mid for s = sigma / alpha, of which eps_mid = eps + (x0 - x0_mid) / s_mid, and
    # (s_cur - s_down) / s_mid = 2 sinh(h / 2).
    correction = jnp.where(finite, 2 * down.alpha * jnp.sinh(0.5 * h), 0) * (x0_mid - x0)
    return down.alpha * x0 + down.sigma * eps + correction
