"""DDIM (Song et al. 2020), deterministic to ancestral."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, added_variance, from_x0, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.ancestral import check_eta
from jaxdiff.solvers.base import Solver, init_empty
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["ddim"]


@factory
def ddim(eta: float | Array = 0.0, *, noise_sampler: NoiseSampler = white) -> Solver:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z, std = eta times the posterior's (eq. 12, 16).

    Song, Meng and Ermon 2020, arXiv:2010.02502. eta = 0 is the probability-flow ODE, eta = 1 is DDPM's ancestral
    sampling with the small variance.

    Args:
        eta: share of the posterior's noise, in [0, 1]; may be traced. A plain 0 draws no noise.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of order 1.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    deterministic = check_eta(eta)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        if deterministic:
            return nxt.alpha * x0 + nxt.sigma * eps, state
        # The posterior's std is sigma_s sqrt(added variance).
        drawn = jnp.asarray(eta, x.dtype) * jnp.sqrt(added_variance(cur, nxt))
        # With eta = 1 the factor of eps is 0 after pure noise and at the end, up to rounding.
        kept = safe_sqrt(jnp.maximum(1 - jnp.square(drawn), 0))
        return nxt.alpha * x0 + nxt.sigma * (kept * eps + drawn * noise_sampler(key, x, cur, nxt)), state

    return Solver(init_empty, step, stochastic=not deterministic)
