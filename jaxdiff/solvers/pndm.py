"""Pseudo numerical methods (Liu et al. 2022): Adams-Bashforth weights for eps_hat in DDIM's formula.

`pndm`, `plms` and `ipndm` differ in the first steps, where the history is too short: Runge-Kutta steps, one step of
Heun's method, or lower orders.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0, typed_levels
from jaxdiff.processes import Process
from jaxdiff.solvers.base import (
    Solver,
    check_lower_order_final,
    check_order,
    lerp,
    prepend,
    select_level,
    steps_left,
)
from jaxdiff.types import Denoiser

__all__ = ["ipndm", "plms", "pndm"]

# Adams-Bashforth weights for equal steps, newest value first: orders 1 to 4.
_WEIGHTS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


@factory
def pndm(process: Process | None = None, *, lower_order_final: Level | None = None) -> Solver:
    """PNDM with three pseudo Runge-Kutta steps first (F-PNDM; Liu et al. 2022, arXiv:2202.09778, algorithm 2).

    Args:
        process: gives the inner point of Runge-Kutta steps, at the midpoint in time, as in the paper. Without it the
            midpoint is interpolated linearly, which is the same for EDM and Flow.
        lower_order_final: as for `dpmpp_2m`; Runge-Kutta steps stay as they are.

    Returns:
        a solver of order 2 (order 4 for equal steps in sigma / alpha, which the weights assume) with one evaluation per
        step, and four in each of the first three steps.

    Raises:
        ValueError: `lower_order_final` is no grid.
    """
    points, weights = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    return _adams(4, points, weights, steps=3, process=process, lower_order_final=lower_order_final)


@factory
def plms(*, lower_order_final: Level | None = None) -> Solver:
    """PNDM with a pseudo Heun step first, then orders 2 and 3: the PLMS sampler of latent and Stable Diffusion.

    Rombach et al. 2022, arXiv:2112.10752 (their published code); the multistep method is Liu et al.'s
    (arXiv:2202.09778).

    Args:
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of order 2 with one evaluation per step, and two in the first step.
    """
    return _adams(4, (0.0, 1.0), (1 / 2, 1 / 2), steps=1, lower_order_final=lower_order_final)


@factory
def ipndm(order: int = 4, *, lower_order_final: Level | None = None) -> Solver:
    """PNDM with lower orders first, instead of Runge-Kutta steps (iPNDM; Zhang and Chen 2022, arXiv:2204.13902).

    Args:
        order: number of evaluations that are combined, 1 to 4; 1 is DDIM.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of order min(order, 2) with one evaluation per step.

    Raises:
        ValueError: order is not 1, 2, 3 or 4; `lower_order_final` is no grid.
    """
    check_order("ipndm", order, 1, 2, 3, 4)
    return _adams(order, (0.0,), (1.0,), steps=0, lower_order_final=lower_order_final)


def _adams(
    order: int, points: tuple[float, ...], weights: tuple[float, ...], *, steps: int, process: Process | None = None,
    lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """Adams-Bashforth of this order, after `steps` Runge-Kutta steps that evaluate at `points` of the step.

    A step is x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps, where eps is a mean of the evaluations, and x0
    follows from x and eps: for alpha_t > 0 this is DDIM's formula. At pure noise x0 is also a mean of the evaluations.
    """
    check_lower_order_final(lower_order_final)

    def init(x: Array) -> tuple[Array, Array]:
        return jnp.zeros((order - 1, *x.shape), x.dtype), jnp.zeros((), jnp.int32)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        past, done = state
        warming = done < steps

        def ends_at(x0: Array, eps: Array) -> tuple[Array, Array]:
            pure = cur.alpha == 0
            return jnp.where(pure, x0, (x - cur.sigma * eps) / jnp.where(pure, 1, cur.alpha)), eps

        def move(ends: tuple[Array, Array], level: Level) -> Array:
            return x + (level.alpha - cur.alpha) * ends[0] + (level.sigma - cur.sigma) * ends[1]

        def evaluate(ends: tuple[Array, Array], level: Level) -> tuple[Array, Array]:
            there = move(ends, level)
            return ends_at(*from_x0(denoise(there, level), there, level))

        def stage(ends, i_level):  # after the warm-up only the first stage is evaluated
            i, level = i_level
            ends = jax.lax.cond((i == 0) | warming, lambda ends: evaluate(ends, level), lambda ends: ends, ends)
            return ends, ends

        levels = _stages(points, cur, nxt, process)
        if len(points) == 1:  # plainly at the step's start, as `known_denoiser` asks
            x0, eps = (a[None] for a in ends_at(*from_x0(denoise(x, cur), x, cur)))
        else:
            empty = jnp.zeros_like(x), jnp.zeros_like(x)
            _, (x0, eps) = jax.lax.scan(stage, empty, (jnp.arange(len(points)), levels))
        # At sigma = 0 eps is undefined: a warm-up step is Euler's.
        predicted = jnp.where(nxt.sigma > 0, jnp.asarray(weights, x.dtype), jnp.eye(len(points), dtype=x.dtype)[0])
        least = jnp.minimum(jnp.minimum(done, order - 1), steps_left(lower_order_final, cur) - 1)
        adams = jnp.asarray(_WEIGHTS, x.dtype)[least]
        mean = lambda w, values: jnp.tensordot(w, values, 1, precision="highest")  # noqa: E731
        of_history = mean(adams[:1], eps[:1]) + mean(adams[1:order], past)
        ends = ends_at(mean(predicted, x0), jnp.where(warming, mean(predicted, eps), of_history))
        return move(ends, nxt), (prepend(past, eps[0]), done + 1)

    return Solver(init, step, order=min(order, 2))


def _stages(points: tuple[float, ...], cur: Level, nxt: Level, process: Process | None) -> Level:
    """The levels of the points, stacked; `cur` replaces `nxt` if that is clean data."""
    line = lerp(cur, nxt, 0.5)
    mid = line if process is None else typed_levels(process(line.t), line.sigma)
    at = {0.0: cur, 0.5: mid, 1.0: select_level(nxt.sigma > 0, cur, nxt)}
    levels = [at[w] for w in points]
    like = levels[min(1, len(points) - 1)]  # the time of a table is an integer, except at the midpoint
    return Level(*(jnp.stack([f.astype(l.dtype) for f in fields]) for l, *fields in zip(like, *levels, strict=True)))
