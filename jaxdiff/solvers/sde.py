"""Steps of the reverse SDE (Song et al. 2020): Euler-Maruyama and the reverse diffusion sampler."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, added_variance, from_x0, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, init_empty, lerp, select_level
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["euler_maruyama", "reverse_diffusion"]


@factory
def euler_maruyama(*, noise_sampler: NoiseSampler = white) -> Solver:
    """The Euler-Maruyama method for the reverse SDE, dx = (f x - g^2 score) dt + g dw (Song et al. 2020, eq. 6).

    arXiv:2011.13456. The coefficients follow from the two levels: f dt = log(alpha_t / alpha_s), and g^2 dt = sigma_t^2
    - sigma_s^2 - 2 f sigma^2 dt with the mean of sigma^2.

    Args:
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of order 1. From pure noise, where f is infinite, the step is the posterior's; the step to sigma = 0
        returns x0_hat, without noise, as in the paper.
    """

    def coefficients(cur: Level, nxt: Level) -> tuple[Array, Array]:
        f_dt = jnp.log(cur.alpha / nxt.alpha)
        sum_of_var = jnp.square(cur.sigma) + jnp.square(nxt.sigma)
        return f_dt, (cur.sigma - nxt.sigma) * (cur.sigma + nxt.sigma) - f_dt * sum_of_var

    return _reverse(coefficients, noise_sampler)


@factory
def reverse_diffusion(*, noise_sampler: NoiseSampler = white) -> Solver:
    """The reverse of the forward process's own steps, x - f(x) + G^2 score + G z (Song et al. 2020, appendix E).

    x + f(x) and G are the mean and the standard deviation of q(x_t | x_s), so that for a beta table it is the paper's
    (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z.

    Args:
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of order 1, with the same steps from pure noise and to sigma = 0 as `euler_maruyama`.
    """

    def coefficients(cur: Level, nxt: Level) -> tuple[Array, Array]:
        return cur.alpha / nxt.alpha - 1, jnp.square(cur.sigma) * added_variance(cur, nxt)

    return _reverse(coefficients, noise_sampler)


def _reverse(coefficients: Callable[[Level, Level], tuple[Array, Array]], noise_sampler: NoiseSampler) -> Solver:
    """Steps x - f x + g^2 score + g z with (f, g^2) from `coefficients`, and the exact steps at both ends."""

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        z = noise_sampler(key, x, cur, nxt)
        pure = cur.alpha == 0
        f, g2 = coefficients(select_level(~pure, lerp(cur, nxt, 0.5), cur), nxt)
        reverse = x - f * x - g2 / cur.sigma * eps + safe_sqrt(g2) * z
        moved = jnp.where(pure, nxt.alpha * x0 + nxt.sigma * z, reverse)
        return jnp.where(nxt.sigma > 0, moved, x0), state

    return Solver(init_empty, step, stochastic=True)
