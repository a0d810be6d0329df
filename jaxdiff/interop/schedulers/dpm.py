"""DPM-Solver and DPM-Solver++: multistep, singlestep, inverse, and EDM's."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config, flow
from jaxdiff.interop.schedulers.coefficients import rule, step_between
from jaxdiff.interop.schedulers.config import LAST, Scheduler
from jaxdiff.interop.schedulers.exponential import build, tabled
from jaxdiff.interop.schedulers.multistep import Points, Step, multistep
from jaxdiff.interop.schedulers.timesteps import check
from jaxdiff.solvers import Solver

__all__ = ["dpm_inverse", "dpm_multistep", "dpm_singlestep", "edm_dpm", "falling_order", "order_of"]

ALGORITHMS = ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"]
Made = Callable[[Points], Solver]


def dpm_multistep(c: Fields, tokens: int | None) -> Scheduler:
    """DPMSolverMultistepScheduler; see `scheduler` for the arguments."""
    algorithm, table = _algorithm(c, *ALGORITHMS), config.rescaled(c, config.table(c), LAST)
    rounded = () if c.get("beta_schedule", "linear") == "squaredcos_cap_v2" else ("karras", "lu")
    solver = _multistep(c, algorithm, no_third=("sde-dpmsolver",))
    lists = tabled(c, table, clipped=True, lu=True, rounded=rounded, tokens=tokens)
    return build(c, table, lists, solver, of_noise="++" not in algorithm)


def dpm_inverse(c: Fields) -> Scheduler:
    """DPMSolverMultistepInverseScheduler, whose grids go from the table's first level to its last."""
    algorithm, table = _algorithm(c, *ALGORITHMS, clean=False), config.table(c)
    solver = _multistep(c, algorithm, no_third=("sde-dpmsolver", "sde-dpmsolver++"), clean=False)
    lists = tabled(c, table, ends=False, repeats=True, rises=True, clipped=True)
    return build(c, table, lists, solver, of_noise="++" not in algorithm)


def edm_dpm(c: Fields) -> Scheduler:
    """EDMDPMSolverMultistepScheduler."""
    euler, sigmas, (low, high) = flow.edm_euler(c), *flow.edm_sigmas(c)
    to_clean = c.get("final_sigmas_type", "zero") == "zero"
    solver = _multistep(c, _algorithm(c, "dpmsolver++", "sde-dpmsolver++"), no_third=("sde-dpmsolver++",))

    def points(n: int) -> Points:
        check(n, None)
        s = np.append(sigmas(n), 0 if to_clean else low)
        return Points(s, np.ones_like(s), s)

    return config.build(
        euler.process,
        euler.prediction,
        lambda n: points(n).levels(),
        lambda n: solver(points(n)),
        std=lambda levels: jnp.hypot(config.ones(levels), high),
        clip=config.thresholded(c),
    )


def _algorithm(c: Fields, *known: str, clean: bool = True) -> str:
    algorithm = c.expect("algorithm_type", *known, "deis")  # the reference treats "deis" as the first
    if "++" not in algorithm and clean and c.get("final_sigmas_type", "zero") == "zero":
        raise ValueError(
            f"{algorithm} integrates noise, of which clean data has none: final_sigmas_type must be sigma_min"
        )
    return known[0] if algorithm == "deis" else algorithm


def _line(c: Fields) -> str:
    kind = c.expect("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")  # the last three mean midpoint
    return "exact" if kind == "heun" else "midpoint"


def order_of(c: Fields, name: str, default: int, most: int | None = None) -> int:
    """Return the config's order, an integer of at least 1."""
    order = c.get(name, default)
    if not isinstance(order, int) or order < 1 or (most and order > most):
        allowed = f"from 1 to {most}" if most else "of at least 1"
        raise ValueError(f"{name} must be a whole number {allowed}, got {order!r}")
    return order


def falling_order(order: int, k: int, points: Points, taken: int, *, lower: bool, last: int | None = None) -> int:
    """Return the order of step k, at most 3.

    Args:
        order: the config's order.
        k: index of the step.
        points: the list.
        taken: number of steps before this one.
        lower: whether the last two of less than 15 steps have orders of at most 2 and 1.
        last: maximal order of the last step, for any number of steps.
    """
    left = points.N - k
    most = left if lower and points.N < 15 else 3
    return min(order, taken + 1, 3, most, last if last and left == 1 else 3)


def _multistep(c: Fields, algorithm: str, no_third: tuple[str, ...], clean: bool = True) -> Made:
    order, line, eta = order_of(c, "solver_order", 2), _line(c), float("sde" in algorithm)
    lower, of_noise = c.get("lower_order_final", True), "++" not in algorithm
    euler = c.get("euler_at_final", False) or (clean and c.get("final_sigmas_type", "zero") == "zero")
    # The reference has half the integral of u^2, or of its approximation with noise.
    integral = rule(line, lambda H, m: -(m[1] / H + 0.5) if eta and not of_noise else m[2] / 2)

    def solver(points: Points) -> Solver:
        def step_of(k: int, taken: int) -> Step:
            p = falling_order(order, k, points, taken, lower=lower, last=1 if euler else None)
            if p == 3 and algorithm in no_third:
                raise ValueError(f"{algorithm} has no order 3 in this scheduler")
            return step_between(points, (k, k + 1), range(k, k - p, -1), integral, eta=eta, of_noise=of_noise)

        return multistep(points, step_of, depth=min(order, 3) - 1, of_noise=of_noise, stochastic=bool(eta))

    return solver


def dpm_singlestep(c: Fields, tokens: int | None) -> Scheduler:
    """DPMSolverSinglestepScheduler, whose steps restart with every run of orders 1, 2, (3)."""
    algorithm, table = _algorithm(c, "dpmsolver++", "dpmsolver", "sde-dpmsolver++"), config.table(c)
    of_noise = "++" not in algorithm
    lists = tabled(c, table, spaced=False, clipped=True, tokens=tokens)
    return build(c, table, lists, _singlestep(c, algorithm), of_noise=of_noise)


def _singlestep(c: Fields, algorithm: str) -> Made:
    order, line, eta = order_of(c, "solver_order", 2, 3), _line(c), float("sde" in algorithm)
    lower, zero, of_noise = (
        c.get("lower_order_final", False),
        c.get("final_sigmas_type", "zero") == "zero",
        "++" not in algorithm,
    )
    integral = rule(line, lambda H, m: -(2 * m[1] / H + 1) if eta else m[2])

    def solver(points: Points) -> Solver:
        orders = _orders(order, points.N, lower, zero)

        def step_of(k: int, taken: int) -> Step:
            p = min(orders[k], taken + 1)
            nodes = list(range(k, k - p, -1))
            between = lambda nodes, integral: step_between(  # noqa: E731
                points, (k - p + 1, k + 1), nodes, integral, eta=eta, of_noise=of_noise
            )
            if p == 3 and line == "midpoint":  # without the inner evaluation
                step = between([k, k - 2], rule("exact"))
                step = step._replace(weights=np.insert(step.weights, 1, 0.0))
            else:
                step = between(nodes, integral)
            return step._replace(fresh=p == 1)

        return multistep(points, step_of, depth=order - 1, of_noise=of_noise, stochastic=bool(eta))

    return solver


def _orders(order: int, N: int, lower: bool, zero: bool) -> list[int]:
    """Return orders 1, 2, (3), 1, 2, (3), ... of N steps; the last is 1 if lowered, or at clean data."""
    orders = (list(range(1, order + 1)) * N)[:N]
    if zero or (lower and N % order == 0):
        orders[-1] = 1
    return orders
