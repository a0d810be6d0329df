"""Ancestral sampling of DDPM (Ho et al. 2020) with its choices of variance."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import Level, check_variance, posterior
from jaxdiff.noise import Noise, white
from jaxdiff.solvers.base import Solver, stateless

__all__ = ["ddpm"]


def ddpm(variance: str = "small", *, noise: Noise = white) -> Solver:
    """Ancestral sampling: x_s ~ N(posterior mean at x0_hat, variance) (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    Args:
        variance: "small" is the posterior's beta-tilde, "large" is q(x_t | x_s)'s beta (section 3.2), "learned" lies
            between them, by the denoiser's second answer frac in [0, 1]: exp(frac log beta + (1 - frac) log beta-tilde)
            (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).
        noise: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.
    Returns:
        a solver of order 1; the step to sigma = 0 adds no noise.
    Raises:
        ValueError: another variance.
    """
    check_variance(variance)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        frac: Array | float = float(variance == "large")
        x0 = denoise(x, cur)
        if variance == "learned":
            x0, frac = x0
        mean, std = posterior(x0, x, cur, nxt)
        return mean + interpolated_std(std, frac, cur, nxt) * noise(key, x, cur, nxt), state

    return Solver(stateless, step, stochastic=True, learned_variance=variance == "learned")


def interpolated_std(small: Array, frac: Array | float, cur: Level, nxt: Level) -> Array:
    """exp(frac log beta + (1 - frac) log beta-tilde) / 2 in log: from the posterior's std (frac 0) to beta's (frac 1).

    Both variances are shares of 1 - SNR_t / SNR_s: beta-tilde of sigma_s^2, beta of sigma_t^2. 0 where sigma_s = 0.
    """
    moving = nxt.sigma > 0
    ratio = cur.sigma / jnp.where(moving, nxt.sigma, 1)
    return jnp.where(moving, small * ratio**frac, 0)
