"""Multistep methods with exact integrals: DEIS, UniPC and SA-Solver."""

from __future__ import annotations

import numpy as np

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import config
from jaxdiff.interop.schedulers.coefficients import rule, step_between
from jaxdiff.interop.schedulers.config import LAST, Clip, Scheduler
from jaxdiff.interop.schedulers.dpm import falling_order, order_of
from jaxdiff.interop.schedulers.exponential import Lists, build, tabled
from jaxdiff.interop.schedulers.flow import dynamic_shift
from jaxdiff.interop.schedulers.multistep import Points, Step, multistep
from jaxdiff.interop.schedulers.timesteps import check, shifted
from jaxdiff.parameterize import Denoiser
from jaxdiff.processes import Discrete
from jaxdiff.sampling import identity
from jaxdiff.solvers import Solver

__all__ = ["deis", "sa_solver", "unipc"]


def deis(c: Fields, tokens: int | None) -> Scheduler:
    """DEISMultistepScheduler; see `scheduler` for the arguments."""
    c.expect("algorithm_type", "deis", "dpmsolver", "dpmsolver++")  # the reference treats all as the first
    c.expect("solver_type", "logrho", "midpoint", "heun", "bh1", "bh2")
    order, lower, table = order_of(c, "solver_order", 2), c.get("lower_order_final", True), config.table(c)

    def solver(points: Points) -> Solver:
        def step_of(k: int, taken: int) -> Step:
            p = falling_order(order, k, points, taken, lower=lower)
            return step_between(points, (k, k + 1), range(k, k - p, -1), rule("exact"), of_noise=True)

        return multistep(points, step_of, depth=min(order, 3) - 1, of_noise=True)

    clip = config.thresholded(c) or identity
    if c.get("prediction_type", "epsilon") == "flow_prediction" and not c.get("use_flow_sigmas", False):
        clip = _as_eps(clip)
    return build(c, table, tabled(c, table, ends=False, repeats=True, tokens=tokens), solver, clip=clip)


def _as_eps(clip: Clip) -> Clip:
    """Return the x_0 that has the reference's eps, (x - alpha x_0) / (sigma / alpha), instead of division by sigma."""

    def limited(denoise: Denoiser) -> Denoiser:
        inner = clip(denoise)
        return lambda x, level: (1 / level.alpha - 1) * x + level.alpha * inner(x, level)

    return limited


def unipc(c: Fields, tokens: int | None) -> Scheduler:
    """UniPCMultistepScheduler; see `scheduler` for the arguments."""
    c.expect("solver_p", None)
    order, lower, of_noise = (
        order_of(c, "solver_order", 2),
        c.get("lower_order_final", True),
        not c.get("predict_x0", True),
    )
    kind = c.expect(
        "solver_type", "bh2", "bh1", "midpoint", "heun", "logrho"
    )  # the reference treats the last three as the first
    integral, off = rule("half" if kind == "bh1" else "midpoint"), set(c.get("disable_corrector", ()) or ())
    table = config.rescaled(c, config.table(c), LAST)

    def solver(points: Points) -> Solver:
        def between(ends: tuple[int, int], nodes: range) -> Step:
            return step_between(points, ends, nodes, integral, of_noise=of_noise)

        def predicted(k: int, taken: int) -> Step:
            p = min(order, taken + 1, points.N - k if lower else order)
            return between((k, k + 1), range(k, k - p, -1))

        def step_of(k: int, taken: int) -> Step:
            step = predicted(k, taken)
            if taken == 0 or k - 1 in off:
                return step
            before = predicted(k - 1, taken - 1).weights
            after = between((k - 1, k), range(k, k - 1 - len(before), -1)).weights
            return step._replace(correction=_less(after, before))

        return multistep(points, step_of, depth=order, of_noise=of_noise)

    clip = identity if of_noise else None  # the reference clips x_0 only if it combines x_0
    return build(c, table, _unipc_lists(c, table, tokens), solver, of_noise=of_noise, clip=clip)


def _unipc_lists(c: Fields, table: Discrete, tokens: int | None) -> Lists:
    """Return lists as by `tabled`, except for a flow's times and Karras' curve of a flow."""
    dynamic, times = c.get("use_dynamic_shifting", False), c.get("num_train_timesteps", 1000)
    shift = dynamic_shift(c, tokens, "exponential", "linear") if dynamic else c.get("flow_shift", 1.0)
    flow, schedule_type, terminal = (
        c.get("use_flow_sigmas", False),
        config.schedule_type(c),
        c.get("shift_terminal", None),
    )
    if terminal is not None and not flow:
        raise ValueError("shift_terminal is of use_flow_sigmas")
    plain, end = tabled(c, table, repeats=True), c.get("final_sigmas_type", "zero")

    def list_of(n: int) -> tuple[np.ndarray, np.ndarray]:
        if schedule_type or not flow:
            t, s = plain(n)
            if flow and schedule_type == "karras":
                s = s / (s + 1)
                t = np.floor(s[:-1] * times)
            return t, s
        check(n, table.T)
        s = np.linspace(1, 1 / times, n + 1)[:-1]
        # Rounding as in the reference: at the first level alpha is 1e-6, and 1 - s loses its last digits.
        s = shift / (shift + (1 / s - 1)) if dynamic else shifted(s, shift)
        s = 1 - (1 - s) / ((1 - s[-1]) / (1 - terminal)) if terminal else s
        s[0] -= 1e-6 * (abs(s[0] - 1) < 1e-6)  # the reference avoids pure noise
        return np.floor(s * times), np.append(s, 0.0 if end == "zero" else s[-1])

    return list_of


def sa_solver(c: Fields) -> Scheduler:
    """SASolverScheduler."""
    c.expect("tau_func", None)
    of_noise = c.expect("algorithm_type", "data_prediction", "noise_prediction") == "noise_prediction"
    order, corrector = order_of(c, "predictor_order", 2, 4), order_of(c, "corrector_order", 2, 4)
    lower, table = c.get("lower_order_final", True), config.table(c)
    lists, flow = tabled(c, table, ends=False, repeats=True, clipped=True), c.get("use_flow_sigmas", False)
    integral = rule("exact" if of_noise else "half")

    def solver(points: Points) -> Solver:
        times = np.round(table.T * points.t if flow else points.t - 1)

        def between(ends: tuple[int, int], nodes: range) -> Step:
            eta = float(200 <= times[ends[0]] <= 800)  # the square of the reference's tau
            return step_between(points, ends, nodes, integral, eta=eta, of_noise=of_noise)

        def predicted(k: int, taken: int) -> Step:
            p = min(order, taken + 1, points.N - k if lower else order)
            return between((k, k + 1), range(k, k - p, -1))

        def step_of(k: int, taken: int) -> Step:
            step = predicted(k, taken)
            if taken == 0:
                return step
            p = min(corrector, taken + 1, points.N - k + 2 if lower else corrector)
            after = between((k - 1, k), range(k, k - p, -1)).weights
            return step._replace(correction=_less(after, predicted(k - 1, taken - 1).weights))

        depth = max(order, corrector - 1)
        return multistep(points, step_of, depth=depth, of_noise=of_noise, stochastic=True)

    return build(c, table, lists, solver, of_noise=of_noise)


def _less(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Subtract the predictor's weights, which begin one prediction earlier, from the corrector's."""
    n = max(len(after), len(before) + 1)
    return np.pad(after, (0, n - len(after))) - np.pad(before, (1, n - 1 - len(before)))
