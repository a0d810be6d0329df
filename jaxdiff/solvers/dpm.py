"""DPM-Solver (Lu et al. 2022): singlestep exponential integrators of eps_hat in lam."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0
from jaxdiff.processes import Process
from jaxdiff.solvers.adams import moments
from jaxdiff.solvers.base import (
    Solver,
    check_order,
    exponential_step,
    init_empty,
    lambda_step,
    safe_level_at_lambda,
    with_process,
)
from jaxdiff.types import Denoiser

__all__ = ["dpm_solver"]


@factory
def dpm_solver(order: int = 2, process: Process | None = None) -> Solver:
    """DPM-Solver-1, 2 and 3, singlestep (Lu et al. 2022, arXiv:2206.00927, sec. 3).

    Args:
        order: 1 (DDIM), 2 (with the inner point r_1 = 1/2) or 3 (r_1 = 1/3, r_2 = 2/3).
        process: gives the time of the inner points. Without it that time is interpolated: exact for EDM and Flow, and
            where the network's noise input is lam; elsewhere it is off by O(h^2), which leaves order 2.

    Returns:
        a solver of this order with as many evaluations per step; the steps from pure noise and to sigma = 0 are of
        order 1.

    Raises:
        ValueError: order is not 1, 2 or 3.
    """
    check_order("dpm_solver", order, 1, 2, 3)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        h, finite = lambda_step(cur, nxt)

        def start(r: float) -> tuple[Array, Level]:
            """The step of order 1 to the inner point at a share r of h, and its level."""
            mid = safe_level_at_lambda(cur, nxt, cur.lam + r * h, finite)
            return mid.sigma / cur.sigma * x - mid.alpha * jnp.expm1(-r * h) * x0, mid

        def change(x: Array, level: Level) -> Array:
            return from_x0(with_process(denoise, process)(x, level), x, level).eps - eps

        # What the integral of exp(lam_s - lam) (eps_hat - eps), by differences of eps, adds to the step of order 1, in
        # units of sigma_s.
        add: Array | float = 0.0
        if order == 2:
            add = -jnp.expm1(h) * change(*start(1 / 2))
        elif order == 3:
            D = change(*start(1 / 3))
            u, mid = start(2 / 3)
            D = change(u + 2 * mid.sigma * moments(-2 / 3 * h, 2)[1] * D, mid)
            add = 1.5 * moments(-h, 2)[1] * D
        return exponential_step(x, x0, cur, nxt) + jnp.where(finite, nxt.sigma * add, 0), state

    return Solver(init_empty, step, order=order, nfe=order)
