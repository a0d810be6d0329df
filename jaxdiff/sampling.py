"""Settings of sampling: the grid, the solver, guidance; for experiments and for other projects' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array

from jaxdiff.checks import check_called
from jaxdiff.guidance import cfg
from jaxdiff.levels import Level
from jaxdiff.options import Range
from jaxdiff.parameterize import Denoiser
from jaxdiff.solvers import Solver

__all__ = ["Guide", "Sampling", "first_sigma", "identity"]

Guide = Callable[[Denoiser, Denoiser, Any], Denoiser]  # (conditional, unconditional, scale) -> guided


def identity(denoise: Denoiser) -> Denoiser:
    """Return the denoiser itself, without clipping."""
    return denoise


def first_sigma(levels: Level) -> Array:
    """Standard deviation of the noise at the first level."""
    return levels.sigma[0]


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        grid: number of steps -> levels, fields [N + 1].
        solver: a solver, or number of steps -> solver.
        steps: the default number of steps.
        guidance: the default guidance scale; 1 is off.
        guide: (conditional denoiser, unconditional denoiser, scale) -> denoiser, e.g. `guidance.cfg`.
        clip: denoiser -> denoiser, applied after guidance, e.g. to clip x0_hat.
        init_noise_std: levels -> standard deviation of the initial noise; by default the first level's sigma.
    """

    grid: Callable[[int], Level] = field(repr=False)
    solver: Solver | Callable[[int], Solver]
    steps: int
    guidance: float = 1.0
    guide: Guide = field(default=cfg, repr=False)
    clip: Callable[[Denoiser], Denoiser] = field(default=identity, repr=False)
    init_noise_std: Callable[[Level], Array] = field(default=first_sigma, repr=False)

    def __post_init__(self) -> None:
        Range(1).check("sampling.steps", self.steps)
        number = isinstance(self.guidance, (int, float)) and not isinstance(self.guidance, bool)
        if not number or not math.isfinite(self.guidance):
            raise ValueError(f"sampling.guidance must be a finite number, got {self.guidance!r:.80}")
        for name in ("grid", "guide", "clip", "init_noise_std"):
            if not callable(getattr(self, name)):
                raise ValueError(f"sampling.{name} must be a function, got {getattr(self, name)!r:.80}")
        _check_solver(self.solver)

    def prepare(self) -> tuple[Level, Solver]:
        """Make the levels and the solver for `steps` steps.

        Returns:
            (levels, fields [N + 1]; solver). If `solver` is a Solver that needs decreasing noise, levels with no less
            noise than an earlier one are dropped: some schedules repeat levels for their own solver.
        """
        levels = self.grid(self.steps)
        if not isinstance(self.solver, Solver):
            return levels, self.solver(self.steps)
        return (_decreasing(levels) if self.solver.decreasing else levels), self.solver


def _check_solver(solver: Any) -> None:
    if isinstance(solver, Solver):
        return
    if not callable(solver):
        raise ValueError(f"sampling.solver must be a Solver or a function of the number of steps, got {solver!r:.80}")
    check_called("sampling.solver", solver)


def _decreasing(levels: Level) -> Level:
    angle = np.arctan2(np.asarray(levels.sigma), np.asarray(levels.alpha))
    falls = angle < np.append(np.inf, np.minimum.accumulate(angle)[:-1])
    return Level(*(values[falls] for values in levels))
