"""Replacement: after each step, what was measured is put back at the step's noise level (inpainting, RePaint, MCG)."""

from __future__ import annotations

import jax
from jax import Array

from jaxdiff.inverse.base import check_operator, measure
from jaxdiff.inverse.guide import dps_normalized
from jaxdiff.inverse.operators.base import Operator, check_count
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.solvers.restart import check_new_noise, restart
from jaxdiff.types import Denoiser

__all__ = ["mcg", "replace"]

FRESH = 2**31 - 1  # of the noise that is put back; solvers fold small numbers into a step's key


def replace(solver: Solver, operator: Operator, y: Array, *, resample: int = 0, noise: Array | None = None) -> Solver:
    """After each step x + A^+ (alpha y + sigma A z - A x) with fresh noise z, and again `resample` times (RePaint).

    Song et al. 2020 (arXiv:2011.13456, appendix I.2) for a mask; RePaint (Lugmayr et al. 2022, arXiv:2201.09865,
    algorithm 1) with jumps of one step: noise is added back to the step's first level, and the step taken again, which
    harmonizes the new with the known. Replacement alone draws from no posterior; with more resamplings its mean
    nears the posterior's, and its spread shrinks unless there are many steps. For jumps of several steps see
    `solvers.restart` around this solver.

    Args:
        solver: the solver of a step; without a history if it is taken again.
        operator: A; `operators.mask` for inpainting.
        y: measurements without noise, [B, *measured]: for a mask the known entries of the picture, and else 0. May be
            traced.
        resample: how often a step is taken again, 0 for none; the step to sigma = 0 never is.
        noise: standard normal, like x, of what is put back at all levels; None draws new noise at each.

    Returns:
        a solver, after whose step to sigma = 0 A x = y. It has no order.

    Raises:
        ValueError: not a solver or an operator, y as for `tmpd`, resample < 0, or with
            resample > 0 a solver with a history, or with noise of one path.
    """
    check_solver(solver)
    check_operator(operator, y)
    check_count("resample", resample, 0)

    def init(x: Array):
        state = solver.init(x)
        if resample and jax.tree.leaves(state):
            raise ValueError(
                f"{solver} has a history, which is wrong after going back: resample with a solver that has "
                "none, such as ddpm, ddim or heun"
            )
        return state

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        if resample:
            check_new_noise(solver, key, x, state, cur, nxt)
        x, state = solver.step(denoise, key, x, state, cur, nxt)  # what A does not see is drawn as without it
        noised = nxt.sigma * (normal_like(fold_in(key, FRESH), x) if noise is None else noise)
        # The difference of measurements, with the noise as it is seen: A z has the law that A x has there.
        away = nxt.alpha.astype(y.dtype) * y - measure(operator, y, x - noised)
        return x + operator.pseudoinverse(away), state

    draws = solver.stochastic or noise is None
    replaced = solver._replace(init=init, step=step, order=None, stochastic=draws)
    return restart(replaced, repeats=int(resample)) if resample else replaced


def mcg(solver: Solver, operator: Operator, y: Array, scale: float | Array = 1.0) -> Solver:
    """Manifold constrained gradients: `dps_normalized`, then `replace` (Chung et al. 2022, arXiv:2206.00941).

    Args:
        solver, operator, y, scale: as for `dps_normalized` and `replace`.

    Returns:
        a solver, after whose step to sigma = 0 A x = y. It has no order.

    Raises:
        ValueError: as for both.
    """
    return replace(dps_normalized(solver, operator, y, scale), operator, y)
