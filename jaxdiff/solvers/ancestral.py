"""Ancestral steps (k-diffusion): an ODE step to a lower noise level, then fresh noise up to the next level."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.levels import Level, added_variance, from_x0, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, init_empty
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["ancestral_step", "check_eta", "euler_ancestral"]


@factory
def euler_ancestral(
    eta: float | Array = 1.0, s_noise: float | Array = 1.0, *, noise_sampler: NoiseSampler = white
) -> Solver:
    """Euler's method to sigma_down, then noise up to sigma (k-diffusion's `sample_euler_ancestral`).

    In sigma / alpha this holds for every process, and equals DDIM's step with the same eta: DDPM's with the small
    variance at eta = 1, Euler's at eta = 0.

    Args:
        eta: share of the posterior's noise, in [0, 1]; may be traced. A plain 0 draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of order 1; the step to sigma = 0 adds no noise.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    deterministic = check_eta(eta)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        down, up = ancestral_step(eta, x, cur, nxt)
        x = down.alpha * x0 + down.sigma * eps
        return x if deterministic else x + jnp.asarray(s_noise, x.dtype) * up * noise_sampler(key, x, cur, nxt), state

    return Solver(init_empty, step, stochastic=not deterministic)


def ancestral_step(eta: float | Array, x: Array, cur: Level, nxt: Level) -> tuple[Level, Array]:
    """The level (alpha_s, sigma_down) to step to, and the standard deviation sigma_up of the noise from there to `nxt`.

    k-diffusion's `get_ancestral_step` in sigma / alpha: sigma_up is eta times the posterior's standard deviation, and
    sigma_down^2 + sigma_up^2 = sigma_s^2. The time is that of `nxt`.
    """
    eta = jnp.asarray(eta, x.dtype)
    # 1 - eta^2 (1 - SNR_t / SNR_s) without cancellation, which matters near eta = 1 and for long steps.
    kept = (1 - eta) * (1 + eta) + jnp.square(eta) * jnp.exp(2 * (cur.lam - nxt.lam))
    return nxt._replace(sigma=nxt.sigma * safe_sqrt(jnp.maximum(kept, 0))), eta * nxt.sigma * jnp.sqrt(
        added_variance(cur, nxt)
    )


def check_eta(eta: float | Array) -> bool:
    """Whether eta is a plain 0, without noise. Raise ValueError if it is a number outside [0, 1]."""
    check_number("eta", eta, low=0.0, high=1.0)
    return isinstance(eta, (int, float)) and eta == 0
