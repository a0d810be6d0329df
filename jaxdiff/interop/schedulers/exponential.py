"""Schedulers that integrate exponentially in lam: DPM-Solver++, DEIS, UniPC."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import solvers
from jaxdiff.interop.architecture import Fields
from jaxdiff.interop.schedulers import base
from jaxdiff.interop.schedulers.base import LAST, Sampling
from jaxdiff.interop.schedulers.lists import bent, check, inner_times, levels, ratio, time_of
from jaxdiff.levels import Level
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import exponential

__all__ = ["deis", "dpm_multistep", "dpm_singlestep", "unipc"]


def dpm_multistep(c: Fields) -> Sampling:
    """DPMSolverMultistepScheduler."""
    algorithm = c.only("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "deis")  # theirs reads "deis" as the first
    kind, order = c.only("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2"), c.only("solver_order", 2, 1, 3)
    c.only("variance_type", None)
    c.only("euler_at_final", False)
    c.skip("lower_order_final")
    eta, variant = float(algorithm == "sde-dpmsolver++"), "heun" if kind == "heun" else "midpoint"
    orders = [solvers.ddim, lambda eta: solvers.dpmpp_2m_sde(eta, variant=variant), solvers.dpmpp_3m_sde]
    whole = c.take("beta_schedule", "linear") != "squaredcos_cap_v2"
    return _sampling(c, base.rescaled(c, base.table(c), LAST), orders[order - 1](eta), whole=whole)


def dpm_singlestep(c: Fields) -> Sampling:
    """DPMSolverSinglestepScheduler."""
    c.only("algorithm_type", "dpmsolver++", "deis")
    c.only("solver_type", "midpoint", "logrho", "bh1", "bh2")
    c.only("solver_order", 2)
    c.only("variance_type", None)
    c.only("final_sigmas_type", "zero")
    c.skip("lower_order_final")  # which theirs is where it ends at clean data
    return _sampling(c, base.table(c), _pairs(), lists=False)


def _pairs() -> Solver:
    """DPM-Solver++(2S) with every second level of the grid as the inner point of the step between its neighbours."""

    def init(x: Array) -> tuple[Array, Array, Array]:
        # Where the pair began, x and x0_hat, and its sigma and lam; a pair that is not begun has sigma = 0.
        return jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros(2, x.dtype)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        begun, first, (sigma, lam) = state
        x0 = denoise(x, cur)
        alone = exponential(x, x0, cur, nxt)
        second = (sigma > 0) & (nxt.sigma > 0)  # to clean data the order is 1
        lam = jnp.where(second, lam, cur.lam - 1)
        h = jnp.where(second, nxt.lam, cur.lam) - lam
        slope = 0.5 * h / (cur.lam - lam) * (x0 - first)
        start = cur._replace(sigma=jnp.where(second, sigma, 1))
        paired = nxt.sigma / start.sigma * begun - nxt.alpha * jnp.expm1(-h) * (first + slope)
        here = jnp.where(second, 0, jnp.stack([cur.sigma, cur.lam]))
        return jnp.where(second, paired, alone), (x, x0, here)

    return Solver(init, step, order=2)


def deis(c: Fields) -> Sampling:
    """DEISMultistepScheduler."""
    c.skip("algorithm_type", "solver_type", "lower_order_final")  # theirs knows one of each
    return _sampling(c, base.table(c), solvers.deis(c.only("solver_order", 2, 1, 3)), to_clean=False)


def unipc(c: Fields) -> Sampling:
    """UniPCMultistepScheduler."""
    kind = c.only("solver_type", "bh2", "bh1", "midpoint", "heun", "logrho")
    c.only("predict_x0", True)
    c.only("disable_corrector", (), None)
    c.only("solver_p", None)
    c.skip("lower_order_final", "sigma_min", "sigma_max")
    solver = solvers.unipc(c.take("solver_order", 2), "bh1" if kind == "bh1" else "bh2")
    return _sampling(c, base.rescaled(c, base.table(c), LAST), solver)


def _sampling(
    c: Fields, table: Discrete, solver: Solver, *, lists: bool = True, to_clean: bool | None = None, whole: bool = True,
) -> Sampling:  # fmt: skip
    for name in ("use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"):
        c.only(name, False)
    curve, limit = base.curve(c), base.thresholded(c) or base.free
    spacing, offset = base.spacing(c, "linspace") if lists else ("linspace", 0)
    if to_clean is None:
        to_clean = c.only("final_sigmas_type", "zero", "sigma_min") == "zero"
    least = c.take("lambda_min_clipped", -np.inf)
    last = int(np.sum(-np.log(ratio(table)) >= least))

    def grid(n: int) -> Level:
        check(n, table.T - 1)
        if curve:
            s = bent(curve, n, ratio(table)[-1], ratio(table)[0])
            t = time_of(table, s)
            t = np.round(t) if whole and curve == "karras" else np.floor(t)
        else:
            t = inner_times(table.T, n, spacing, offset, last)
            s = np.interp(t, np.arange(table.T), ratio(table))
        t, s = np.append(t, -1 if to_clean else 0), np.append(s, 0 if to_clean else ratio(table)[0])
        return levels(t + 1, 1 / np.hypot(1, s), s / np.hypot(1, s))

    return Sampling(table, base.row(c), grid, solver, base.unit, limit)
