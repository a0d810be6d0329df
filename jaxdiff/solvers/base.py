"""The type of a solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jaxdiff.levels import Level

__all__ = ["Solver"]


class Solver(NamedTuple):
    """An algorithm that goes from one level to the next.

    Attributes:
        init: x -> state, what a multistep method remembers (any pytree; () for none).
        step: (denoise, key, x, state, cur, nxt) -> (x, state). `cur` and `nxt` are scalar levels; `cur.sigma` > 0.
        order: of convergence, for smooth denoisers.
        nfe: evaluations of the denoiser a step.
        stochastic: whether it draws noise.
    """

    init: Callable[[Array], Any]
    step: Callable[[Callable, Array, Array, Any, Level, Level], tuple[Array, Any]]
    order: int = 1
    nfe: int = 1
    stochastic: bool = False


def stateless(x: Array) -> tuple[()]:
    """The `init` of a one-step method."""
    return ()
