"""Linear multistep (k-diffusion's LMS): Adams-Bashforth methods in sigma / alpha, for any step sizes."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0
from jaxdiff.solvers.base import Solver, check_lower_order_final, check_order, prepend, steps_left
from jaxdiff.types import Denoiser

__all__ = ["lms"]


@factory
def lms(order: int = 4, *, lower_order_final: Level | None = None) -> Solver:
    """Adams-Bashforth in s = sigma / alpha: x / alpha changes by the integral of a polynomial through the last eps_hat.

    k-diffusion's `sample_lms`, with exact integrals (two Gauss-Legendre points, exact for a cubic).

    Args:
        order: number of evaluations in the polynomial, 1 to 4; 1 is Euler's method and DDIM.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of this order with one evaluation per step. The first steps are of order 1, 2, ..., and the step from
        pure noise, which is not part of the polynomial, of order 1. The step to sigma = 0 has the full order.

    Raises:
        ValueError: order is not 1, 2, 3 or 4; `lower_order_final` is no grid.
    """
    check_order("lms", order, 1, 2, 3, 4)
    check_lower_order_final(lower_order_final)

    def init(x: Array) -> tuple[Array, Array]:
        # Evaluations are stored with their alpha / sigma: those with 0, of pure noise or not yet made, have weight 0.
        return jnp.zeros((order - 1, *x.shape), x.dtype), jnp.zeros(order - 1, x.dtype)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        past, r_past = state
        x0, eps = from_x0(denoise(x, cur), x, cur)
        r = (cur.alpha / cur.sigma).astype(x.dtype)
        change = jnp.zeros_like(x)
        r_used = jnp.where(jnp.arange(order - 1, dtype=jnp.int32) < steps_left(lower_order_final, cur) - 1, r_past, 0)
        for j, weight in enumerate(_integrals(r, r_used, nxt.sigma / nxt.alpha)):
            change = change + nxt.alpha * weight * (past[j] - eps)
        # The weights of the current and past evaluations sum to the size of the step.
        return nxt.alpha * x0 + nxt.sigma * eps + change, (
            prepend(past, eps),
            prepend(r_past, r),
        ) if order > 1 else state

    return Solver(init, step, order=order)


def _integrals(r: Array, past: Array, end: Array) -> list[Array]:
    """The integrals over s from 1 / r to `end` of Lagrange's polynomials, each 1 at one of 1 / past and 0 at the others
    and at 1 / r."""
    begin = jnp.where(r > 0, 1 / jnp.where(r > 0, r, 1), 0)  # after pure noise all weights are 0
    half = 0.5 * (end - begin)
    points = [0.5 * (begin + end) + sign * half / 3**0.5 for sign in (-1, 1)]

    def basis(j: int, s: Array) -> Array:
        value = jnp.ones_like(s)
        for k, other in enumerate([r, *past]):
            if k == j + 1:
                continue
            # (s - s_k) / (s_j - s_k), which is 1 for an infinite s_k and 0 for an infinite s_j.
            apart = other - past[j]
            value = value * (s * other - 1) * past[j] / jnp.where(apart == 0, 1, apart)
        return value

    return [half * (basis(j, points[0]) + basis(j, points[1])) for j in range(len(past))]
