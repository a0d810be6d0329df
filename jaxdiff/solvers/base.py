"""The type of a solver, and what many of them share: the exponential step, levels between two levels, a history.

How steps are written here. With h = lam_s - lam_t, from level t (`cur`) to the cleaner s (`nxt`), a denoiser that
stays constant moves x exactly to (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x0_hat: `exponential_step`. It is finite
at both ends, where h is infinite, and what a higher order adds has to vanish there: `lambda_step`.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import describe
from jaxdiff.levels import Level
from jaxdiff.processes import Process
from jaxdiff.types import Denoiser, SolverInit, SolverStep

__all__ = [
    "Solver",
    "check_solver",
    "exponential_step",
    "init_empty",
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
    """An algorithm that goes from one level to the next.

    Attributes:
        init: x -> state, what a multistep method remembers (any pytree; () for none).
        step: (denoise, key, x, state, cur, nxt) -> (x, state); see `types.SolverStep`.
        order: of convergence for smooth denoisers, once a multistep method has its history (the weak order where
            noise is drawn); None where the number of steps does not set the error.
        nfe: evaluations of the denoiser a step; None where the tolerance sets it.
        stochastic: whether it draws noise.
        learned_variance: whether its denoiser must answer (x0_hat, frac); others take x0_hat alone.
        falling: whether the noise of its grid has to fall; other solvers stay at a level, or rise.
    """

    init: SolverInit
    step: SolverStep
    order: int | None = 1
    nfe: int | None = 1
    stochastic: bool = False
    learned_variance: bool = False
    falling: bool = True

    def __repr__(self) -> str:
        name = describe(self.step).split(".step")[0]
        return f"<Solver {name}: order={self.order}, nfe={self.nfe}{', stochastic' if self.stochastic else ''}>"


def check_solver(solver: Any) -> None:
    """Raise ValueError unless `solver` is a Solver."""
    if not isinstance(solver, Solver):
        call = f": call {solver.__name__}()" if inspect.isfunction(solver) else ", as jaxdiff.solvers make them"
        raise ValueError(f"solver must be a Solver, got {describe(solver)}{call}")


def init_empty(x: Array) -> tuple[()]:
    """The `init` of a one-step method."""
    return ()


def exponential_step(x: Array, x0: Array, cur: Level, nxt: Level) -> Array:
    """The step of a constant denoiser: (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x0; DDIM's, by lam."""
    return nxt.sigma / cur.sigma * x - nxt.alpha * jnp.expm1(cur.lam - nxt.lam) * x0


def lambda_step(cur: Level, nxt: Level) -> tuple[Array, Array]:
    """h = lam_s - lam_t, and whether it is finite; 1 where it is not, so that gradients stay finite."""
    h = nxt.lam - cur.lam
    finite = jnp.isfinite(h)
    return jnp.where(finite, h, 1), finite


def select_level(condition: Array, cur: Level, nxt: Level) -> Level:
    """`nxt` where the condition holds, else `cur`: a safe level to denoise at where the answer is not used."""
    return jax.tree.map(lambda n, c: jnp.where(condition, n, c.astype(n.dtype)), nxt, cur)


def lerp(cur: Level, nxt: Level, w: float | Array) -> Level:
    """The level w of the way from `cur` to `nxt`, t, alpha and sigma each on a straight line."""
    line = lambda c, n: c + jnp.asarray(w, n.dtype) * (n - c.astype(n.dtype))  # noqa: E731
    t = line(cur.t.astype(nxt.sigma.dtype), nxt.t.astype(nxt.sigma.dtype))  # a table's integer time gets a fraction
    return Level(t, line(cur.alpha, nxt.alpha), line(cur.sigma, nxt.sigma))


def level_at_lambda(cur: Level, nxt: Level, lam: Array) -> Level:
    """The level of the chord from `cur` to `nxt` with this finite lam = log(alpha / sigma) between theirs."""
    # b alpha = a sigma with (a, b) in the direction of (alpha, sigma), of length 1 so that nothing overflows.
    a, b = jnp.sqrt(jax.nn.sigmoid(2 * lam)), jnp.sqrt(jax.nn.sigmoid(-2 * lam))
    d_alpha, d_sigma = nxt.alpha - cur.alpha, nxt.sigma - cur.sigma
    return lerp(cur, nxt, (b * cur.alpha - a * cur.sigma) / (a * d_sigma - b * d_alpha))


def safe_level_at_lambda(cur: Level, nxt: Level, lam: Array, finite: Array) -> Level:
    """The level of the chord with this lam, or `cur` where the step has no finite h: a safe one to denoise at."""
    return select_level(finite, cur, level_at_lambda(cur, nxt, jnp.where(finite, lam, 0)))


def with_process(denoise: Denoiser, process: Process | None) -> Denoiser:
    """The denoiser for levels of a chord, which may lie off the process: x and its level are put back on it.

    A level off the path with the right alpha / sigma differs by a scale only: the answer at (c x; c alpha, c sigma) is
    the one at (x; alpha, sigma). But a network is told t. Without a process the chord's level is taken as it is: exact
    for EDM and Flow, and wherever the network is told lam and any scale of x will do; elsewhere t is off by O(h^2).

    Args:
        denoise: (x, level) -> x0_hat.
        process: gives the time of a lam; None takes levels as they are.
    """
    if process is None:
        return denoise

    def named(x: Array, level: Level) -> Any:
        true = process(process.time(level.lam.astype(jnp.result_type(float))))
        true = jax.tree.map(lambda field: field.astype(x.dtype), true)
        on, off = true.expand_to(x), level.expand_to(x)
        return denoise(jnp.hypot(on.alpha, on.sigma) / jnp.hypot(off.alpha, off.sigma) * x, true)

    return named


def steps_left(grid: Level | None, cur: Level) -> Array | int:
    """The number of steps from `cur` to the end of a grid that has this level, fields [N + 1]; many without a grid."""
    if grid is None:
        return 2**30
    alpha, sigma = (jnp.asarray(field, cur.sigma.dtype) for field in (grid.alpha, grid.sigma))
    return jnp.sum(sigma * cur.alpha < cur.sigma * alpha, dtype=jnp.int32)


def prepend(history: Array, new: Array) -> Array:
    """A history [K, ...], newest first, with its newest entry."""
    return jnp.concatenate([new[None].astype(history.dtype), history])[: history.shape[0]]
