"""DPM-Solver++ (Lu et al. 2022): exponential integrators in lam on the denoiser."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.levels import Level
from jaxdiff.solvers.base import Solver, exponential, finite_h

__all__ = ["dpmpp_2m"]


def dpmpp_2m() -> Solver:
    """DPM-Solver++(2M), the multistep method of order 2 (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    Returns:
        a solver of order 2 with one evaluation a step. The first step, the step after pure noise (lam = -inf), and the
        step to sigma = 0 (where no polynomial in lam reaches) are of order 1.
    """

    def init(x: Array) -> tuple[Array, Array]:
        # An infinite last step makes the slope's coefficient 0: warm-up without a branch.
        return jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0_prev, h_prev = state
        x0 = denoise(x, cur)
        h, finite = finite_h(cur, nxt)
        D = x0 + jnp.where(finite, 0.5 * h / h_prev, 0) * (x0 - x0_prev)  # 1 / (2 r)
        return exponential(x, D, cur, nxt), (x0, jnp.where(finite, h, jnp.inf))

    return Solver(init, step, order=2)
