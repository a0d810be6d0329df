"""Sampling with a network whose inner layers are computed at every k-th step only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function
from jaxdiff.levels import Level, check_grid, typed_levels
from jaxdiff.sample import check_shape, sample
from jaxdiff.solvers.base import Solver, check_one_level, check_solver, known_denoiser
from jaxdiff.types import Denoiser

__all__ = ["sample_cached"]


def sample_cached(
    make: Callable[[Any], Denoiser], network: Any, solver: Solver, levels: Level, x: Array, key: Array, *, every: int
) -> Array:
    """`sample`, where the layers of `network` are computed at every k-th step, and are taken as they were between.

    DeepCache (Ma et al. 2023, arXiv:2312.00858) for any network and layers, see `networks.as_cached`. The pattern is
    fixed: which steps are computed depends on no picture, so that none depends on its neighbours. It is not exact: the
    error grows with k, and with the size of the steps.

    Args:
        make: apply -> the denoiser, with its condition and guidance: `lambda apply: denoiser(apply, params, prediction,
            cond)`. It may evaluate the network several times, each with a cache of its own, but not inside of a branch
            or a loop, as `guidance.interval` does.
        network: (keep, reuse), as `networks.as_cached` makes it.
        solver: one that evaluates the denoiser once a step, at its start.
        levels, x, key: as for `sample`.
        every: k; 1 is `sample`.

    Returns:
        x at the last level, like x.

    Raises:
        ValueError: as for `sample`; a solver that evaluates elsewhere or several times, every < 1, a network that is
            evaluated inside of a branch or a loop.
    """
    check_function("make", make, "(apply) -> denoiser")
    check_solver(solver)
    check_one_level(solver)
    check_grid(levels)
    if solver.nfe != 1:
        raise ValueError(f"caches are for solvers of one evaluation a step, got {solver!r}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")

    def keep(x: Array, level: Level) -> tuple[Any, tuple[Any, ...]]:
        found: list[Any] = []

        def apply(*args: Any) -> Any:
            out, cache = network.keep(*args)
            found.append(jax.lax.stop_gradient(cache))  # a gradient of x0_hat in x ends before the cache leaves it
            return out

        return check_shape(make(apply)(x, level), x), tuple(found)

    def reuse(x: Array, level: Level, caches: tuple[Any, ...]) -> Any:
        left = iter(caches)
        return check_shape(make(lambda *args: network.reuse(*args, next(left)))(x, level), x)

    def init(x: Array) -> Any:
        shapes = jax.eval_shape(lambda x: keep(x, typed_levels(levels, x).at(0))[1], x)
        return solver.init(x), jnp.int32(0), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def step(denoise: Denoiser, key: Array, x: Array, state: Any, cur: Level, nxt: Level) -> Any:
        inner, i, caches = state
        x0, caches = jax.lax.cond(
            i % every == 0,
            lambda x, caches: keep(x, cur),
            lambda x, caches: (reuse(x, cur, caches), caches),
            x,
            caches,
        )
        x, inner = solver.step(known_denoiser(solver, x, cur, x0), key, x, inner, cur, nxt)
        return x, (inner, i + 1, caches)

    plain = make(lambda *args: network.keep(*args)[0])
    try:
        return sample(plain, solver._replace(init=init, step=step), levels, x, key)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "the denoiser evaluates its network inside of a branch or a loop, such as that of guidance in an interval, "
            "where no cache can be kept: take one that does not, such as guidance.cfg with a scale by level"
        ) from error
