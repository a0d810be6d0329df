"""DEIS (Zhang and Chen 2022): the exponential Adams-Bashforth method on the noise."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0
from jaxdiff.solvers.adams import history_weights
from jaxdiff.solvers.base import (
    Solver,
    check_lower_order_final,
    check_order,
    exponential_step,
    lambda_step,
    prepend,
    steps_left,
)
from jaxdiff.types import Denoiser

__all__ = ["deis"]


@factory
def deis(order: int = 2, *, lower_order_final: Level | None = None) -> Solver:
    """DEIS-AB: eps_hat as a polynomial through past evaluations (Zhang and Chen 2022, arXiv:2204.13902).

    The polynomial is in lam = -log rho with rho = sigma / alpha, as in diffusers' "logrho". The polynomial in rho (the
    paper's rho-AB) is `lms`.

    Args:
        order: number of evaluations in the polynomial, 1 to 3, the paper's tAB0 to tAB2; 1 is DDIM.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of this order with one evaluation per step; the first steps are of order 1 and 2, and the step to
        sigma = 0 is of order 1.

    Raises:
        ValueError: order is not 1, 2 or 3; `lower_order_final` is no grid.
    """
    check_order("deis", order, 1, 2, 3)
    check_lower_order_final(lower_order_final)

    def init(x: Array) -> tuple[Array, Array]:
        return jnp.zeros((order - 1, *x.shape), x.dtype), jnp.full(order - 1, -jnp.inf, x.dtype)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        past, lams = state
        x0, eps = from_x0(denoise(x, cur), x, cur)
        h, finite = lambda_step(cur, nxt)
        new = exponential_step(x, x0, cur, nxt)
        lams = jnp.where(
            jnp.arange(order - 1, dtype=jnp.int32) < steps_left(lower_order_final, cur) - 1, lams, -jnp.inf
        )
        share = history_weights(lams, cur, h, finite, -h)
        for k in range(order - 1):
            new = new + nxt.sigma * share[k] * (past[k] - eps)
        return new, (prepend(past, eps), prepend(state[1], cur.lam)) if order > 1 else state

    return Solver(init, step, order=order)
