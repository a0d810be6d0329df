"""Multistep sampling of consistency models (Song et al. 2023)."""

from __future__ import annotations

from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, q_sample
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, init_empty
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["consistency"]


@factory
def consistency(*, noise_sampler: NoiseSampler = white) -> Solver:
    """x_s = alpha_s f(x_t, t) + sigma_s z, with a consistency function f (Song et al. 2023, algorithm 1).

    arXiv:2303.01469. f(x_t, t) is the end of the probability flow, not E[x_0 | x_t]: the denoiser must be a consistency
    model, e.g. a latent one (Luo et al. 2023, arXiv:2310.04378, algorithm 3).

    Args:
        noise_sampler: `noise.white`, or `noise.brownian(key)`.

    Returns:
        a solver without an order, exact for any number of steps if f is.
    """

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        return q_sample(denoise(x, cur), noise_sampler(key, x, cur, nxt), nxt), state

    return Solver(init_empty, step, order=None, stochastic=True)
