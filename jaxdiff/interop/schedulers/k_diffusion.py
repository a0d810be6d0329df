"""k-diffusion's schedulers: x = x_0 + s eps, of which the network sees x / sqrt(1 + s^2)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxdiff import parameterize, solvers
from jaxdiff.interop.architecture import Fields
from jaxdiff.interop.schedulers import base
from jaxdiff.interop.schedulers.base import LAST, Limit, Sampling
from jaxdiff.interop.schedulers.lists import bent, check, levels, ratio, time_of, times
from jaxdiff.levels import Level
from jaxdiff.parameterize import Scalings
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver

__all__ = ["dpm_2", "dpm_2_ancestral", "euler", "euler_ancestral", "heun", "lms"]


def euler(c: Fields) -> Sampling:
    """EulerDiscreteScheduler."""
    c.only("interpolation_type", "linear")
    told, predicted = c.only("timestep_type", "discrete", "continuous"), c.take("prediction_type", "epsilon")
    ends = c.take("sigma_min", None), c.take("sigma_max", None)
    to_clean = c.only("final_sigmas_type", "zero", "sigma_min") == "zero"
    table = base.rescaled(c, base.table(c), LAST)
    made = _sampling(c, table, solvers.euler(), base.curve(c), ends=ends, to_clean=to_clean)
    if told == "continuous" and predicted == "v_prediction":  # for other predictions theirs tells the time all the same
        return made._replace(row=parameterize.conditioned(made.row, lambda level: -level.lam / 4))
    return made


def euler_ancestral(c: Fields) -> Sampling:
    """EulerAncestralDiscreteScheduler."""
    return _sampling(c, base.rescaled(c, base.table(c), LAST), solvers.euler_ancestral())


def lms(c: Fields) -> Sampling:
    """LMSDiscreteScheduler."""
    return _sampling(c, base.table(c), solvers.lms(), base.curve(c))


def heun(c: Fields) -> Sampling:
    """HeunDiscreteScheduler."""
    limit = base.clipped(c, False) or base.free
    return _sampling(c, base.table(c, 0.00085, 0.012), solvers.heun(), base.curve(c), limit=limit)


def dpm_2(c: Fields) -> Sampling:
    """KDPM2DiscreteScheduler."""
    table = base.table(c, 0.00085, 0.012)
    return _sampling(c, table, solvers.dpm_2(table), base.curve(c), whole=True)


def dpm_2_ancestral(c: Fields) -> Sampling:
    """KDPM2AncestralDiscreteScheduler."""
    table = base.table(c, 0.00085, 0.012)
    return _sampling(c, table, solvers.dpm_2_ancestral(process=table), base.curve(c), whole=True)


def _sampling(
    c: Fields, table: Discrete, solver: Solver, curve: str | None = None, *, whole: bool = False,
    limit: Limit = base.free, ends: tuple[float | None, float | None] = (None, None), to_clean: bool = True,
) -> Sampling:  # fmt: skip
    spacing, offset = base.spacing(c, "linspace")
    inner = base.row(c)

    def row(level: Level) -> Scalings:
        r = jnp.hypot(level.alpha, level.sigma)
        s = inner(Level(level.t, level.alpha / r, level.sigma / r))
        return s._replace(skip=s.skip / r, inp=s.inp / r)

    def grid(n: int) -> Level:
        check(n, table.T)
        t = times(table.T, n, spacing, offset)
        s = np.interp(t, np.arange(table.T), ratio(table))
        if curve:
            low, high = (given or own for given, own in zip(ends, (s[-1], s[0]), strict=True))
            s = bent(curve, n, high, low)
            t = time_of(table, s)
            t = np.round(t) if whole and curve == "karras" else t
        t, s = np.append(t, -1 if to_clean else 0), np.append(s, 0 if to_clean else ratio(table)[0])
        return levels(t + 1, np.ones_like(s), s)

    std = base.unit if spacing == "leading" else base.noisiest
    return Sampling(table, row, grid, solver, std, limit)
