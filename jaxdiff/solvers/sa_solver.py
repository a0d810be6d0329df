"""SA-Solver (Xue et al. 2023): a stochastic Adams predictor and corrector."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level
from jaxdiff.noise import white
from jaxdiff.solvers.adams import adams
from jaxdiff.solvers.base import Solver
from jaxdiff.types import NoiseSampler

__all__ = ["sa_solver"]


@factory
def sa_solver(
    predictor_order: int = 3, corrector_order: int = 4, tau: float | Array | Callable[[Level], Array] = 1.0, *,
    s_noise: float | Array = 1.0, noise_sampler: NoiseSampler = white, lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """An Adams-Bashforth predictor and an Adams-Moulton corrector for the variance-controlled SDE (Xue et al. 2023).

    arXiv:2309.05019, with data prediction (x0_hat), in the mode with one evaluation per step. The coefficients are the
    paper's integrals for all orders; its code and diffusers simplify those of order 2.

    Args:
        predictor_order: number of evaluations in the predictor's polynomial, at least 1.
        corrector_order: the same for the corrector, including the evaluation at the step's end; 0 is no corrector.
        tau: amount of noise, a number of at least 0, which may be traced, or a function of the step's first level. 1 is
            the reverse SDE, 0 the ODE, and a plain 0 draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of weak order 2 (1 for a predictor of order 1 without a corrector; for a plain tau = 0 the higher order
        of the two, but at most the predictor's plus 1) with one evaluation per step. The first steps are of a lower
        order, and the step to sigma = 0 is of order 1; the last step is not corrected.

    Raises:
        ValueError: an order that is not allowed, or a tau below 0.
    """
    if not isinstance(predictor_order, int) or predictor_order < 1:
        raise ValueError(f"predictor_order must be an integer of at least 1, got {predictor_order}")
    if not isinstance(corrector_order, int) or corrector_order < 0:
        raise ValueError(f"corrector_order must be an integer of at least 0, got {corrector_order}")
    if isinstance(tau, (int, float)) and not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    best = max(predictor_order, min(corrector_order, predictor_order + 1))
    ode = isinstance(tau, (int, float)) and tau == 0
    eta = tau**2 if isinstance(tau, (int, float)) else (lambda level: jnp.square(tau(level) if callable(tau) else tau))
    order = best if ode else min(best, 2)
    return adams(
        predictor_order, corrector_order, eta=eta, s_noise=s_noise, noise_sampler=noise_sampler, order=order,
        lower_order_final=lower_order_final,
    )  # fmt: skip
