"""Shared parts of the exponential integrators' configs: lists of levels, and predictions."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxdiff import parameterize
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.config import Clip, Scheduler
from jaxdiff.interop.schedulers.flow import dynamic_shift
from jaxdiff.interop.schedulers.multistep import Points
from jaxdiff.interop.schedulers.timesteps import check, inner_times, ratio, shifted, sigma_schedule, time_of
from jaxdiff.levels import Level
from jaxdiff.parameterize import Prediction, Scalings
from jaxdiff.processes import Discrete, Flow
from jaxdiff.solvers import Solver

__all__ = ["Lists", "build", "flow_shift", "points_of", "row_of", "tabled"]

Lists = Callable[[int], tuple[np.ndarray, np.ndarray]]  # N -> (times [N], s [N + 1])


def tabled(
    c: Fields, table: Discrete, *, spaced: bool = True, ends: bool = True, repeats: bool = False, rises: bool = False,
    clipped: bool = False, lu: bool = False, rounded: tuple[str, ...] = ("karras",), tokens: int | None = None,
) -> Lists:  # fmt: skip
    """Return the list of a scheduler with a table: times, counted from 0, and s, sigma of a flow or else sigma / alpha.

    Args:
        c: the config.
        table: the table of betas.
        spaced: whether the config has a spacing.
        ends: whether the list may end at clean data.
        repeats: whether a curve or a flow that does not end at clean data repeats its last level, instead of ending at
            the table's first level.
        rises: whether lists go from the table's first level to its last.
        clipped: whether the class reads `lambda_min_clipped`.
        lu: whether the class reads `use_lu_lambdas`.
        rounded: the curves whose times are rounded; others are rounded down.
        tokens: see `flow_shift`.
    """
    end = c.expect("final_sigmas_type", "zero", "sigma_min") if ends else "sigma_min"
    spacing, offset = config.spacing(c, "linspace") if spaced else ("linspace", 0)
    flow, shift, schedule_type = c.get("use_flow_sigmas", False), flow_shift(c, tokens), config.schedule_type(c)
    least, s_of = c.get("lambda_min_clipped", -np.inf) if clipped else -np.inf, ratio(table)
    last = int(np.sum(-np.log(s_of) >= least))
    begin, stop, final = (s_of[0], s_of[-1], s_of[last - 1]) if rises else (s_of[-1], s_of[0], s_of[0])
    if lu and schedule_type != "karras" and c.get("use_lu_lambdas", False):
        schedule_type = "lu"
    elif schedule_type:  # fields of other classes, which a curve reads all the same
        high, low = c.get("sigma_max", None), c.get("sigma_min", None)
        begin, stop = begin if high is None else high, stop if low is None else low
    times = c.get("num_train_timesteps", 1000)  # of a flow, whatever the table's number

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        check(n, table.T)
        if schedule_type:  # in s = exp(-lam), Lu et al.'s curve is the exponential one
            s = sigma_schedule("exponential" if schedule_type == "lu" else schedule_type, n, begin, stop)
            t = time_of(table, s)
            t = np.round(t) if schedule_type in rounded else t
        elif flow:
            s = shifted(1 - np.linspace(1, 1 / times, n + 1), shift)[:0:-1]
            t = s * times
        else:
            t = inner_times(table.T, n, spacing, offset, last, rises=rises)
            s = np.interp(t, np.arange(table.T), s_of)
        kept = s[-1] if repeats and (schedule_type or flow) else final
        s = np.append(s, 0.0 if end == "zero" else kept)
        if rises:  # each time once, which drops the last levels
            t = t[np.sort(np.unique(t, return_index=True)[1])]
        return np.floor(t), s[: len(t) + 1]

    return list_of


def flow_shift(c: Fields, tokens: int | None) -> float:
    """Return the shift of a flow's times; with `use_dynamic_shifting`, that of an image of so many tokens, if given."""
    if tokens is None or not c.get("use_dynamic_shifting", False):
        return c.get("flow_shift", 1.0)
    return dynamic_shift(c, tokens, "exponential")


def points_of(table: Discrete, flow: bool, t: np.ndarray, s: np.ndarray) -> Points:
    """Return the levels of a list.

    Args:
        table: the table of betas.
        flow: whether s is sigma, with alpha = 1 - sigma; False: s is sigma / alpha, with preserved variance.
        t: [N], the network's noise inputs.
        s: [N + 1].
    """
    if flow:
        return Points(np.append(t / table.T, s[-1]), 1 - s, s)
    end = time_of(table, s[-1:]) if s[-1] > 0 else [-1]
    return Points(np.append(t, end) + 1, 1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2))


def row_of(c: Fields, table: Discrete, flow: bool, of_noise: bool) -> Prediction:
    """Return the prediction. Off the path of its definition, it is as the schedulers interpret it: v with
    alpha = 1 - sigma, or a flow's velocity in x = alpha (x_0 + s eps)."""
    predicted = c.expect("prediction_type", *config.PREDICTIONS, "flow_prediction")
    if of_noise and predicted == "flow_prediction":
        raise ValueError("flow_prediction is a prediction of x_0, and this algorithm needs one of the noise")
    if not flow and predicted != "flow_prediction":
        return parameterize.zero_based(config.PREDICTIONS[predicted])

    def v(level: Level) -> Scalings:
        skip = (1 - level.sigma**2) / level.alpha if of_noise else level.alpha
        return Scalings(skip, -level.sigma, jnp.ones_like(skip), level.t)

    def velocity(level: Level) -> Scalings:
        ones = jnp.ones_like(level.sigma)
        return Scalings(ones, -level.sigma if flow else -level.sigma / level.alpha, ones, level.t)

    prediction = {"v_prediction": v, "flow_prediction": velocity}.get(predicted) or config.PREDICTIONS[predicted]
    return parameterize.with_noise_input(prediction, lambda level: table.T * level.t if flow else level.t - 1)


def build(
    c: Fields, table: Discrete, list_of: Lists, solver: Callable[[Points], Solver], *, of_noise: bool = False,
    clip: Clip | None = None,
) -> Scheduler:  # fmt: skip
    """Put a scheduler together.

    Args:
        c: the config.
        table: the table of betas.
        list_of: see `tabled`.
        solver: list -> its solver.
        of_noise: whether the solver combines predictions of eps, not of x_0.
        clip: replaces the config's thresholding; `identity` for none.
    """
    flow = c.get("use_flow_sigmas", False)
    points = lambda n: points_of(table, flow, *list_of(n))  # noqa: E731
    return config.build(
        Flow() if flow else table,
        row_of(c, table, flow, of_noise),
        lambda n: points(n).levels(),
        lambda n: solver(points(n)),
        std=config.ones,
        clip=clip or config.thresholded(c),
    )
