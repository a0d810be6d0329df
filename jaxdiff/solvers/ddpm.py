"""Ancestral sampling of DDPM (Ho et al. 2020), with a choice of variances."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, factory
from jaxdiff.levels import Level, check_variance, posterior, with_learned_variance
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, init_empty
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["ddpm"]


@factory
def ddpm(
    variance: str = "small",
    *,
    gradient: Callable[[Array, Level], Array] | None = None,
    noise_sampler: NoiseSampler = white,
) -> Solver:
    """Ancestral sampling: x_s ~ N(posterior mean at x0_hat, variance) (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    With a gradient g the mean moves by the variance times g(x_t, t): classifier guidance (Dhariwal and Nichol 2021,
    arXiv:2105.05233, algorithm 1).

    Args:
        variance: "small" is the posterior's beta-tilde, "large" is q(x_t | x_s)'s beta (sec. 3.2), "learned" lies
            between them, exp(frac log beta + (1 - frac) log beta-tilde) with the denoiser's second output frac
            in [0, 1] (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).
        gradient: (x_t, level) -> like x, e.g. `guidance.classifier_gradient`; None is no guidance.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of order 1. The variance of the step to sigma = 0 is 0, without noise or gradient (for likelihoods, see
        `likelihood.variational_term`).

    Raises:
        ValueError: an unknown variance, or `gradient` is not a function.
    """
    check_variance(variance)
    if gradient is not None:
        check_function("gradient", gradient, "(x, level) -> like x")

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        frac: Array | float = float(variance == "large")
        x0 = denoise(x, cur)
        if variance == "learned":
            x0, frac = with_learned_variance(x0)
        mean, small = posterior(x0, x, cur, nxt)
        std = interpolated_std(small, frac, cur, nxt)
        if gradient is not None:
            # Levels of examples of their own have the axes of x, and are given as [B].
            each = Level(*(field.reshape(-1) if field.ndim else field for field in cur))
            mean = mean + jnp.square(std) * gradient(x, each)
        return mean + std * noise_sampler(key, x, cur, nxt), state

    return Solver(init_empty, step, stochastic=True, learned_variance=variance == "learned")


def interpolated_std(small: Array, frac: Array | float, cur: Level, nxt: Level) -> Array:
    """Standard deviation between the posterior's (frac = 0) and that of beta (frac = 1), interpolated in its logarithm.

    Both variances are shares of 1 - SNR_t / SNR_s: beta-tilde of sigma_s^2, beta of sigma_t^2. 0 where sigma_s = 0.
    """
    not_last = nxt.sigma > 0
    ratio = cur.sigma / jnp.where(not_last, nxt.sigma, 1)
    return jnp.where(not_last, small * ratio**frac, 0)
