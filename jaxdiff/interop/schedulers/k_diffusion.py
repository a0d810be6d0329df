"""k-diffusion's schedulers: x = x_0 + s eps, of which the network gets x / sqrt(1 + s^2)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import parameterize, solvers
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config, two_stage
from jaxdiff.interop.schedulers.config import LAST, Clip, Scheduler
from jaxdiff.interop.schedulers.timesteps import check, levels, ratio, sigma_schedule, time_of, times
from jaxdiff.levels import Level, from_x0
from jaxdiff.parameterize import Prediction, Scalings
from jaxdiff.processes import Discrete
from jaxdiff.solvers import Solver
from jaxdiff.solvers.base import prepend

__all__ = ["dpm_2", "dpm_2_ancestral", "dpm_sde", "euler", "euler_ancestral", "heun", "lms"]

SIGMA_INPUT = ("continuous", "v_prediction")  # for other predictions the reference's noise input is the time
TWO = ("epsilon", "v_prediction")


def euler(c: Fields) -> Scheduler:
    """EulerDiscreteScheduler."""
    kind = c.get("prediction_type", "epsilon")
    prediction = config.prediction(c, *config.PREDICTIONS, "original_sample")
    to_clean = c.expect("final_sigmas_type", "zero", "sigma_min") == "zero"
    table = config.rescaled(c, config.table(c), LAST)
    straight = c.expect("interpolation_type", "linear", "log_linear") == "log_linear"
    schedule_type = config.schedule_type(c)
    last = 0.0 if to_clean else ratio(table)[0]

    sigma_input = (c.expect("timestep_type", "discrete", "continuous"), kind) == SIGMA_INPUT

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        t, s = of_times(n)
        if straight and schedule_type is None:  # N + 1 values, so that the configured end is not reached
            s = np.exp(np.linspace(np.log(ratio(table)[-1]), np.log(ratio(table)[0]), n + 1))
        s = np.append(s, last)
        return (time_of(table, s[:-1]), s) if sigma_input else (t, s[: len(t) + 1])  # one more than the times

    of_times = _lists(c, table, schedule_type, whole_range=straight)
    scheduler = _build(c, table, list_of, _any_way(solvers.euler()), prediction=prediction)
    if not sigma_input:
        return scheduler
    return scheduler._replace(
        prediction=parameterize.with_noise_input(scheduler.prediction, lambda level: -level.lam / 4)
    )


def euler_ancestral(c: Fields) -> Scheduler:
    """EulerAncestralDiscreteScheduler."""
    table = config.rescaled(c, config.table(c), LAST)
    solver = _any_way(solvers.euler_ancestral())
    return _build(c, table, _to_clean(_lists(c, table, None)), solver, prediction=config.prediction(c, *TWO))


def lms(c: Fields) -> Scheduler:
    """LMSDiscreteScheduler."""
    table, schedule_type = config.table(c), config.schedule_type(c)
    list_of = _to_clean(_lists(c, table, schedule_type, ends=schedule_type != "karras"))
    return _build(c, table, list_of, lambda n: _lms(list_of(n)[1]), prediction=config.prediction(c))


def _lms(s: np.ndarray) -> Solver:
    """Adams and Bashforth's method with variable steps; `s` are the list's N + 1 values of sigma.

    The order grows with the position in the list. If sampling begins in the middle, the order is full at once, with
    missing predictions replaced by 0.
    """
    half, middle = 0.5 * np.diff(s), 0.5 * (s[1:] + s[:-1])
    table = np.zeros((len(half), 4))
    for i in range(len(half)):
        nodes = s[i - np.arange(min(i + 1, 4))]
        for at in middle[i] + half[i] / 3**0.5 * np.array([-1, 1]):  # Gauss and Legendre's points, exact for a cubic
            for j, node in enumerate(nodes):
                others = np.delete(nodes, j)
                with np.errstate(divide="ignore", invalid="ignore"):
                    table[i, j] += half[i] * np.prod((at - others) / (node - others))

    def init(x: Array) -> Array:
        return jnp.zeros((3, *x.shape), x.dtype)

    def step(denoise, key: Array, x: Array, past: Array, cur: Level, nxt: Level):
        w = jnp.asarray(table, x.dtype)[jnp.argmin(jnp.abs(jnp.asarray(s[:-1], x.dtype) - cur.sigma))]
        eps = from_x0(denoise(x, cur), x, cur).eps
        return x + w[0] * eps + jnp.tensordot(w[1:], past, 1, precision="highest"), prepend(past, eps)

    return Solver(init, step, order=4, decreasing=False)


def heun(c: Fields) -> Scheduler:
    """HeunDiscreteScheduler."""
    table = config.table(c, 0.00085, 0.012, more=("exp",))
    list_of = _to_clean(_lists(c, table, config.schedule_type(c)))
    clip = config.clipped(c, False)
    return _build(c, table, list_of, _any_way(solvers.heun()), prediction=config.prediction(c), clip=clip)


def _any_way(solver: Solver) -> Callable[[int], Solver]:
    """Return the solver for lists that repeat a level, or increase."""
    return config.always(solver._replace(decreasing=False))


def dpm_2(c: Fields) -> Scheduler:
    """KDPM2DiscreteScheduler."""
    return _two_stage(c, lambda table: two_stage.midpoint(table, ancestral=False))


def dpm_2_ancestral(c: Fields) -> Scheduler:
    """KDPM2AncestralDiscreteScheduler."""
    return _two_stage(c, lambda table: two_stage.midpoint(table, ancestral=True))


def dpm_sde(c: Fields) -> Scheduler:
    """DPMSolverSDEScheduler. The seed of its noise is ignored: noise comes from the key of `sample`."""
    c.ignore("noise_sampler_seed")
    return _two_stage(c, two_stage.sde, ends=False)


def _two_stage(c: Fields, solver_of: Callable[[Discrete], Solver], *, ends: bool = True) -> Scheduler:
    table, schedule_type = config.table(c, 0.00085, 0.012), config.schedule_type(c)
    of_times = _lists(c, table, schedule_type, ends=ends or schedule_type != "karras")

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        t, s = of_times(n)
        return np.round(t) if schedule_type == "karras" and ends else t, np.append(s, 0)

    return _build(c, table, list_of, config.always(solver_of(table)), prediction=config.prediction(c, *TWO))


def _lists(
    c: Fields, table: Discrete, schedule_type: str | None, *, ends: bool = True, whole_range: bool = False
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return a function from N to the network's times and sigma there.

    Args:
        c: the config.
        table: the table of betas.
        schedule_type: formula of sigma, see `config.schedule_type`.
        ends: whether sigma_min and sigma_max, if given, are the ends of such a schedule.
        whole_range: whether the default ends are those of the table, not of the times.
    """
    T, (spacing, offset) = c.get("num_train_timesteps", 1000), config.spacing(c, "linspace")
    low, high = c.get("sigma_min", None), c.get("sigma_max", None)

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        check(n, None)
        t = times(T, n, spacing, offset)
        s = np.interp(t, np.arange(table.T), ratio(table))
        if schedule_type is None:
            return t, s
        first, last = ratio(table)[[-1, 0]] if whole_range else s[[0, -1]]
        if ends:
            first, last = (end if sigma is None else sigma for end, sigma in ((first, high), (last, low)))
        s = sigma_schedule(schedule_type, n, first, last)
        return time_of(table, s), s

    return list_of


def _to_clean(list_of: Callable[[int], tuple[np.ndarray, np.ndarray]]):
    def to_clean(n: int) -> tuple[np.ndarray, np.ndarray]:
        t, s = list_of(n)
        return t, np.append(s, 0)

    return to_clean


def _build(
    c: Fields, table: Discrete, list_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
    solver: Callable[[int], Solver], *, prediction: Prediction, clip: Clip | None = None,
) -> Scheduler:  # fmt: skip
    """Build a scheduler from lists of N times and N + 1 values of sigma."""

    def scaled(level: Level) -> Scalings:
        r = jnp.hypot(level.alpha, level.sigma)
        s = prediction(Level(level.t, level.alpha / r, level.sigma / r))
        return s._replace(skip=s.skip / r, inp=s.inp / r)

    def grid(n: int) -> Level:
        t, s = list_of(n)
        end = -1 if s[-1] == 0 else 0
        return levels(np.append(t, end) + 1, np.ones_like(s), s)

    def std(levels: Level) -> Array:
        most = jnp.max(levels.sigma)
        return jnp.hypot(jnp.ones_like(most), most) if config.spacing(c, "linspace")[0] == "leading" else most

    return config.build(table, scaled, grid, solver, std=std, clip=clip)
