"""Restart sampling (Xu et al. 2023): back to more noise, and down again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, q_transition
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.solvers.base import Solver
from jaxdiff.solvers.edm import heun
from jaxdiff.types import Denoiser

__all__ = ["restart"]


@factory
def restart(solver: Solver | None = None, interval: Level | None = None, repeats: int = 1) -> Solver:
    """Noise x back to an interval's first level and solve down to its last, several times (Xu et al. 2023).

    arXiv:2306.14878, algorithm 1. Fresh noise contracts the errors that were made above the interval, and an ODE solver
    makes few within it. The restart happens in the step that arrives at or passes the interval's end, and ends where
    that step does; other steps cost nothing more. Several intervals: `restart(restart(heun(), low), high)`.

    Args:
        solver: of the main path and of the interval; None is `heun()`.
        interval: a grid, fields [M + 1], noisiest first, whose last level is one of the sampler's own, e.g.
            `grids.karras(process, M, ...)` without its clean end; may be traced. None restarts every step but that to
            sigma = 0 from its own beginning.
        repeats: the paper's K.

    Returns:
        a solver of the same order, of main path and interval refined together. A multistep method begins each interval
        without history and goes on with the interval's (an interval of one step keeps it at order 1).

    Raises:
        ValueError: repeats < 0, or an interval that is no grid.
    """
    inner = heun() if solver is None else solver
    if not isinstance(repeats, int | np.integer) or repeats < 0:
        raise ValueError(f"repeats is an integer of at least 0, got {repeats!r:.80}")
    if interval is not None and len(set(map(np.shape, interval)) | {np.shape(interval.t)[:1]}) != 1:
        raise ValueError(f"an interval is a Level with fields [M + 1], got shapes {list(map(np.shape, interval))}")

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
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

        # The state is the interval's too: a multistep method's history from before it is of another trajectory.
        repeat = lambda carry: jax.lax.scan(again, carry, jnp.arange(repeats))[0]  # noqa: E731
        return jax.lax.cond(here, repeat, lambda carry: carry, (x, state))

    often = 1 + repeats if interval is None else 1
    nfe = None if inner.nfe is None else often * inner.nfe
    return inner._replace(step=step, nfe=nfe, stochastic=inner.stochastic or repeats > 0)


def _grid(interval: Level | None, cur: Level, nxt: Level) -> tuple[Level, Array]:
    """The levels to solve down, which end at `nxt`; and whether this step is the one to restart."""
    moving = nxt.sigma > 0
    if interval is None:
        return Level(*(jnp.stack([c.astype(n.dtype), n]) for c, n in zip(cur, nxt, strict=True))), moving
    typed = Level(*(jnp.asarray(field).astype(n.dtype) for field, n in zip(interval, nxt, strict=True)))
    end = typed.at(-1).lam
    end = end - 1e-4 * (1 + jnp.abs(end))  # a level that is the interval's end give or take rounding has arrived
    grid = Level(*(field.at[-1].set(n) for field, n in zip(typed, nxt, strict=True)))
    return grid, moving & (cur.lam < end) & (end <= nxt.lam)
