"""Restart sampling (Xu et al. 2023): add noise, and solve down again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr

from jaxdiff.checks import factory
from jaxdiff.levels import Level, q_transition, time_type
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.solvers.edm import heun
from jaxdiff.types import Denoiser

__all__ = ["check_new_noise", "restart"]


@factory
def restart(solver: Solver | None = None, interval: Level | None = None, repeats: int = 1) -> Solver:
    """Add noise up to an interval's first level and solve down to its last, several times (Xu et al. 2023).

    arXiv:2306.14878, algorithm 1. Fresh noise contracts the errors from above the interval, and an ODE solver adds few
    errors within it. The restart happens in the step that reaches or passes the interval's end, and ends at that step's
    end; other steps cost nothing more. For several intervals use `restart(restart(heun(), low), high)`.

    Args:
        solver: solver of the main path and of the interval; None is `heun()`. Its noise is drawn anew each time, not
            from one path as `noise.brownian`.
        interval: a grid, fields [M + 1], noisiest first, whose last level is a level of the sampler's grid, e.g.
            `grids.karras(process, M, ...)` without its clean end; may be traced. None restarts every step from its
            first level, except the step to sigma = 0.
        repeats: the paper's K.

    Returns:
        a solver of the same order, if main path and interval are refined together. A multistep method starts each
        interval without a history and continues with that of the interval (with intervals of one step its order is 1).

    Raises:
        ValueError: repeats < 0, or `interval` is not a grid; from a step, noise that does not depend on the key, or
            levels that are not those of the whole batch.
    """
    inner = heun() if solver is None else solver
    check_solver(inner)
    if not isinstance(repeats, int | np.integer) or repeats < 0:
        raise ValueError(f"repeats is an integer of at least 0, got {repeats!r:.80}")
    if interval is not None and len(set(map(np.shape, interval)) | {np.shape(interval.t)[:1]}) != 1:
        raise ValueError(f"an interval is a Level with fields [M + 1], got shapes {list(map(np.shape, interval))}")

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        if jnp.ndim(nxt.sigma):
            raise ValueError(
                "a restart does not take examples at levels of their own, as sample_parallel and stream do: take a "
                "solver without one, such as ddim, and of inverse.replace resample=0"
            )
        if repeats:
            check_new_noise(inner, key, x, state, cur, nxt)
        x, state = inner.step(denoise, fold_in(key, 0), x, state, cur, nxt)
        grid, here = _grid(interval, cur, nxt)

        def again(carry, k: Array):
            x, (up, down) = carry[0], (fold_in(key, 2 * k + 1), fold_in(key, 2 * k + 2))
            mean, std = q_transition(x, nxt, grid.at(0))
            x = mean + std * normal_like(up, x)

            def body(carry, i_cur_nxt):
                (x, state), (i, cur, nxt) = carry, i_cur_nxt
                return inner.step(denoise, fold_in(down, i), x, state, cur, nxt), None

            pairs = grid.at(slice(None, -1)), grid.at(slice(1, None))
            return jax.lax.scan(body, (x, inner.init(x)), (jnp.arange(grid.t.shape[0] - 1), *pairs))[0], None

        # The state is also that of the interval: a history from before it belongs to another trajectory.
        repeat = lambda carry: jax.lax.scan(again, carry, jnp.arange(repeats))[0]  # noqa: E731
        return jax.lax.cond(here, repeat, lambda carry: carry, (x, state))

    often = 1 + repeats if interval is None else 1
    nfe = None if inner.nfe is None else often * inner.nfe
    return inner._replace(step=step, nfe=nfe, stochastic=inner.stochastic or repeats > 0)


def check_new_noise(solver: Solver, key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> None:
    """Raise ValueError unless a step that is taken again, with another key, draws other noise.

    The noise of a Brownian path does not depend on the key: x already contains it when the step is taken again.
    """
    if not solver.stochastic:
        return
    same = (lambda x, *_: (x, jnp.zeros_like(x))) if solver.learned_variance else (lambda x, *_: x)
    jaxpr = jax.make_jaxpr(lambda key: solver.step(same, key, x, state, cur, nxt))(key).jaxpr
    (used,) = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    if not used:
        raise ValueError(f"{solver!r} draws the same noise when a step is taken again: take noise.white, not a path's")


def _grid(interval: Level | None, cur: Level, nxt: Level) -> tuple[Level, Array]:
    """The levels of the interval, ending at `nxt`; and whether to restart in this step."""
    not_last = nxt.sigma > 0
    if interval is None:
        return Level(*(jnp.stack([c.astype(n.dtype), n]) for c, n in zip(cur, nxt, strict=True))), not_last
    nxt = nxt._replace(t=nxt.t.astype(time_type(nxt, interval)))
    typed = Level(*(jnp.asarray(field).astype(n.dtype) for field, n in zip(interval, nxt, strict=True)))
    end = typed.at(-1).lam
    end = end - 1e-4 * (1 + jnp.abs(end))  # the end counts as reached despite rounding
    grid = Level(*(field.at[-1].set(n) for field, n in zip(typed, nxt, strict=True)))
    return grid, not_last & (cur.lam < end) & (end <= nxt.lam)
