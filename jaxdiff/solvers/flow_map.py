"""Steps of networks that are given both ends of a step: flow maps, mean velocities, consistency trajectories."""

from __future__ import annotations

from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level
from jaxdiff.solvers.base import Solver, exponential_step, init_empty
from jaxdiff.types import FlowMap

__all__ = ["flow_map"]


@factory
def flow_map() -> Solver:
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) D(x_t, t, s): one network call jumps from t to any s < t.

    For a velocity on `processes.Flow` it is x_s = x_t - (t - s) u(x_t, t, s), with the mean velocity u of MeanFlow
    (Geng et al. 2025, arXiv:2505.13447) or of shortcut models (Frans et al. 2024, arXiv:2410.12557); on
    `processes.EDM` it is G of consistency trajectory models (Kim et al. 2023, arXiv:2310.02279). The denoiser is
    called with three arguments, (x, cur, nxt), as `parameterize.denoiser` makes it of a network with `next_noise`.

    Returns:
        a solver without an order, exact for any number of steps if the network's map is.
    """

    def step(denoise: FlowMap, key: Array, x: Array, state, cur: Level, nxt: Level):
        return exponential_step(x, denoise(x, cur, nxt), cur, nxt), state

    return Solver(init_empty, step, order=None, next_level=True)
