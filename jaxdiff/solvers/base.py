"""The type of a solver, and shared code: the exponential step, levels between two levels, a history.

From level t (`cur`) to the cleaner level s (`nxt`), with h = lam_s - lam_t, a constant x0_hat moves x exactly to
(sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x0_hat: `exponential_step`. This is finite at both ends, where h is
infinite; the terms of higher orders must vanish there: `lambda_step`.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import describe
from jaxdiff.levels import Level, typed_levels
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.types import Denoiser, SolverInit, SolverStep

__all__ = [
    "Solver",
    "check_lower_order_final",
    "check_one_level",
    "check_order",
    "check_solver",
    "exponential_step",
    "implied_x0",
    "init_empty",
    "known_denoiser",
    "lambda_step",
    "lerp",
    "level_at_lambda",
    "prepend",
    "safe_level_at_lambda",
    "select_level",
    "steps_left",
    "with_process",
]


class Solver(NamedTuple):
    """A sampling algorithm, as a step from one level to the next.

    Attributes:
        init: x -> state, e.g. the history of a multistep method (any pytree; () for none).
        step: (denoise, key, x, state, cur, nxt) -> (x, state); see `types.SolverStep`.
        order: order of convergence for smooth denoisers, after a multistep method's first steps (the weak order of a
            stochastic solver); None if the number of steps does not determine the error.
        nfe: evaluations of the denoiser per step, at most; None if the tolerance determines it.
        stochastic: whether the solver draws noise.
        learned_variance: whether the denoiser must return (x0_hat, frac), not x0_hat.
        next_level: whether the denoiser is also given the level at which the step ends: (x, cur, nxt) -> x0_hat.
        decreasing: whether the noise of the grid must decrease; other solvers may stay at a level, or increase it.
        particles: whether x is [B, K, ...], of which the denoiser gets one particle of each example at a time.
    """

    init: SolverInit
    step: SolverStep
    order: int | None = 1
    nfe: int | None = 1
    stochastic: bool = False
    learned_variance: bool = False
    next_level: bool = False
    decreasing: bool = True
    particles: bool = False

    def __repr__(self) -> str:
        name = describe(self.step).split(".step")[0]
        return f"<Solver {name}: order={self.order}, nfe={self.nfe}{', stochastic' if self.stochastic else ''}>"


def check_solver(solver: Any) -> None:
    """Raise ValueError unless `solver` is a Solver."""
    if not isinstance(solver, Solver):
        call = f": call {solver.__name__}()" if inspect.isfunction(solver) else ", as jaxdiff.solvers make them"
        raise ValueError(f"solver must be a Solver, got {describe(solver)}{call}")


def check_one_level(solver: Solver) -> None:
    """Raise ValueError for a solver whose denoiser is told both ends of a step."""
    if solver.next_level:
        raise ValueError(
            f"{solver!r} is for a network that is told both ends of a step: take one such as solvers.ddpm()"
        )


def check_order(name: str, order: int, *allowed: int) -> None:
    """Raise ValueError unless the order of a solver of this name is one of the allowed integers."""
    if not isinstance(order, int | np.integer) or order not in allowed:
        *others, last = allowed
        raise ValueError(f"order of {name} must be {', '.join(map(str, others))} or {last}, got {order}")


def check_lower_order_final(grid: Level | None) -> None:
    """Raise ValueError unless `lower_order_final` is a grid or None; other projects take True or False."""
    if grid is not None and not isinstance(grid, Level):
        raise ValueError(
            f"lower_order_final must be the grid that is passed to sample, or None for the full order, got {grid!r:.80}"
        )


def init_empty(x: Array) -> tuple[()]:
    """The initial state of a one-step method."""
    return ()


def exponential_step(x: Array, x0: Array, cur: Level, nxt: Level) -> Array:
    """The exact step of a constant x0_hat, (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x0: DDIM's."""
    return nxt.sigma / cur.sigma * x - nxt.alpha * jnp.expm1(cur.lam - nxt.lam) * x0


def implied_x0(x: Array, z: Array, cur: Level, nxt: Level) -> Array:
    """The x0_hat whose exact step from x at `cur` ends in z at `nxt`, the inverse of `exponential_step`: z if clean."""
    cur, nxt = cur.expand_to(x), nxt.expand_to(x)
    return (z - nxt.sigma / cur.sigma * x) / (-nxt.alpha * jnp.expm1(cur.lam - nxt.lam))


def known_denoiser(solver: Solver, x: Array, cur: Level, x0: Array) -> Denoiser:
    """The denoiser of a solver that evaluates it at the step's start alone, where x0_hat is known.

    Raises:
        ValueError: from the denoiser, the solver evaluates it elsewhere.
    """

    def known(y: Array, level: Level) -> Array:
        if y is not x or level is not cur:
            raise ValueError(
                f"{solver!r} evaluates its denoiser elsewhere than at a step's start: take one such as ddim"
            )
        return x0

    return known


def lambda_step(cur: Level, nxt: Level) -> tuple[Array, Array]:
    """h = lam_s - lam_t, and whether it is finite; h is 1 if not, so that gradients stay finite."""
    h = nxt.lam - cur.lam
    finite = jnp.isfinite(h)
    return jnp.where(finite, h, 1), finite


def select_level(condition: Array, cur: Level, nxt: Level) -> Level:
    """`nxt` if the condition holds, else `cur`: a safe level for evaluations whose result is not used."""
    return jax.tree.map(lambda n, c: jnp.where(condition, n, c.astype(n.dtype)), nxt, cur)


def lerp(cur: Level, nxt: Level, w: float | Array) -> Level:
    """The level at w in [0, 1] from `cur` to `nxt`, with t, alpha and sigma interpolated linearly."""
    line = lambda c, n: c + jnp.asarray(w, n.dtype) * (n - c.astype(n.dtype))  # noqa: E731
    # Integer times become fractional; in half precision hundreds would be off by one.
    exact = np.promote_types(nxt.sigma.dtype, np.float32)
    t = line(cur.t.astype(exact), nxt.t.astype(exact))
    return Level(t, line(cur.alpha, nxt.alpha), line(cur.sigma, nxt.sigma))


def level_at_lambda(cur: Level, nxt: Level, lam: Array) -> Level:
    """The level with a finite lam = log(alpha / sigma) on the chord (see `lerp`) from `cur` to `nxt`."""
    # b alpha = a sigma with (a, b) in the direction of (alpha, sigma), of length 1 so that nothing overflows.
    a, b = jnp.sqrt(jax.nn.sigmoid(2 * lam)), jnp.sqrt(jax.nn.sigmoid(-2 * lam))
    d_alpha, d_sigma = nxt.alpha - cur.alpha, nxt.sigma - cur.sigma
    return lerp(cur, nxt, (b * cur.alpha - a * cur.sigma) / (a * d_sigma - b * d_alpha))


def safe_level_at_lambda(cur: Level, nxt: Level, lam: Array, finite: Array) -> Level:
    """The level of the chord with this lam, or `cur`, a safe level, if h is not finite."""
    return select_level(finite, cur, level_at_lambda(cur, nxt, jnp.where(finite, lam, 0)))


def with_process(denoise: Denoiser, process: Process | None) -> Denoiser:
    """The denoiser for levels of a chord, which may lie off the process: x and its level are mapped back to it.

    Levels with the same alpha / sigma differ by a scale only: the exact denoiser is equal at (x; alpha, sigma) and at
    (c x; c alpha, c sigma). But networks receive t. Without a process the chord's level is used: exact for EDM and
    Flow, and for networks whose noise input is lam and whose scale of x is arbitrary; otherwise t is off by O(h^2).

    Args:
        denoise: (x, level) -> x0_hat.
        process: gives the time of a lam; None keeps the levels.

    Raises:
        ValueError: the process has no method `time`.
    """
    if process is None:
        return denoise
    check_process(process, "time")

    def named(x: Array, level: Level) -> Any:
        true = process(process.time(level.lam.astype(jnp.result_type(float))))
        true = typed_levels(true, x)
        on, off = true.expand_to(x), level.expand_to(x)
        return denoise(jnp.hypot(on.alpha, on.sigma) / jnp.hypot(off.alpha, off.sigma) * x, true)

    return named


def steps_left(grid: Level | None, cur: Level) -> Array | int:
    """The number of steps from `cur` to the end of a grid, fields [N + 1], that contains it; 2^30 without a grid.

    The grid may repeat its last level.
    """
    if grid is None:
        return 2**30
    alpha, sigma = (jnp.asarray(field, cur.sigma.dtype) for field in (grid.alpha, grid.sigma))
    falls = jnp.append(True, sigma[1:] * alpha[:-1] < sigma[:-1] * alpha[1:])
    return jnp.sum(falls & (sigma * cur.alpha < cur.sigma * alpha), dtype=jnp.int32)


def prepend(history: Array, new: Array) -> Array:
    """Prepend an entry to a history [K, ...], newest first, and drop the oldest."""
    return jnp.concatenate([new[None].astype(history.dtype), history])[: history.shape[0]]
