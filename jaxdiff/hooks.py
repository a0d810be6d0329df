"""Solvers, schedules and guidance by name, as on the command line: "ddim", "ddim(eta=1.0)", "mine.py:f"."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxdiff import grids, guidance, solvers
from jaxdiff.conditions import guidance_scale
from jaxdiff.experiment import Experiment, UserError
from jaxdiff.levels import Level
from jaxdiff.processes import Process
from jaxdiff.sampling import Guide
from jaxdiff.schema import GUIDANCE
from jaxdiff.script import load_function
from jaxdiff.solvers import Solver

_GUIDED = "cond", "uncond", "scale"

__all__ = ["change_sampling", "grid", "guide", "solver"]


def change_sampling(
    experiment: Experiment,
    *,
    guidance: float | None = None,
    guidance_fn: str | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
) -> Experiment:
    """Change how an experiment is sampled, by the options that commands share; None leaves a part as it is.

    Args:
        experiment: the experiment.
        guidance: scale; 1 is off, or the conditional model of a network that takes the scale.
        guidance_fn: as for `guide`.
        solver: as for `solver`.
        grid: as for `grid`.
        steps: number of steps.

    Returns:
        the experiment with another `sampling`, or another scale in the condition of a network that takes it.

    Raises:
        ValueError: a text that names nothing, a number out of range, guidance of a model without a null condition.
        UserError: an option for a model that makes its examples in one call.
    """
    if experiment.sampling is None:
        given = {"guidance": guidance, "guidance-fn": guidance_fn, "solver": solver, "grid": grid, "steps": steps}
        named = [f"--{name}" for name, value in given.items() if value is not None]
        if named:
            raise UserError(f"this run's examples are made in one call of its network: it has no {', '.join(named)}")
        return experiment
    if guidance is not None and "guidance" in experiment.condition.bounds:  # an input of the network
        experiment = replace(experiment, condition=guidance_scale(experiment.condition, guidance))
        guidance = None
    changes = {
        "guidance": None if guidance is None else GUIDANCE.check("guidance", guidance),
        "guide": None if guidance_fn is None else guide(guidance_fn),
        "solver": None if solver is None else _solver(solver, experiment.model.process),
        "grid": None if grid is None else _grid(grid, experiment.model.process),
        "steps": steps,
    }
    chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return replace(experiment, sampling=replace(experiment.sampling, **chosen))


def solver(text: str, process: Process | None = None) -> Solver:
    """Make a solver.

    Args:
        text: a function of `jaxdiff.solvers` or FILE.py:NAME, alone or with arguments: "ddim(eta=1.0)".
        process: what noises the data, for a solver with an argument `process`.

    Raises:
        ValueError: there is none of that name (the message lists those there are), it does not take the arguments, or
            it returns no Solver.
    """
    known = {name: getattr(solvers, name) for name in solvers.__all__ if name != "Solver"}
    factory, name, arguments = _find(
        text, "solver", known, "returns a jaxdiff.solvers.Solver", given=0, process=process
    )
    made = factory(**arguments)
    if not isinstance(made, Solver):
        raise ValueError(f"{name}() must return a jaxdiff.solvers.Solver, got {made!r:.80}")
    return made


def grid(text: str, process: Process) -> Callable[[int], Level]:
    """Make a schedule, number of steps -> levels.

    Args:
        text: a function (process, number of steps) of `jaxdiff.grids` or FILE.py:NAME, alone or with arguments:
            "karras(sigma_min=0.002, sigma_max=80.0)".
        process: what noises the data.

    Raises:
        ValueError: as by `solver`.
    """
    purpose = "takes a process and a number of steps, and returns levels"
    function, name, arguments = _find(text, "grid", _taking(grids, ("process", "n")), purpose, given=2)

    def made(n: int) -> Level:
        levels = function(process, n, **arguments)
        if not isinstance(levels, Level):
            raise ValueError(f"{name} must return levels, a jaxdiff.Level, got {levels!r:.80}")
        return levels

    return made


def guide(text: str) -> Guide:
    """Make a guidance, (conditional denoiser, unconditional denoiser, scale) -> denoiser.

    Args:
        text: a function (cond, uncond, scale) of `jaxdiff.guidance` or FILE.py:NAME, alone or with arguments:
            "apg(eta=0.0)".

    Raises:
        ValueError: as by `solver`.
    """
    purpose, known = "takes two denoisers and a scale, and returns a denoiser", _taking(guidance, _GUIDED)
    # Others need levels, which a text cannot give.
    known = {name: function for name, function in known.items() if not _required(function, 3)}
    function, _, arguments = _find(text, "guidance", known, purpose, given=3)
    return partial(function, **arguments) if arguments else function


def _find(
    text: str,
    kind: str,
    known: Mapping[str, Callable[..., Any]],
    purpose: str,
    *,
    given: int,
    process: Process | None = None,
) -> tuple[Callable[..., Any], str, dict[str, Any]]:
    """The function that a text names, its name, and the arguments that the text gives it; a process if it takes one."""
    name, bracket, rest = text.partition("(")
    path, colon, own = name.rpartition(":")
    arguments = _arguments(f"f({rest}", text) if bracket else {}
    if colon and path.endswith(".py"):
        function = load_function(path, own, purpose)
    elif name in known:
        function = known[name]
    else:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown {kind} {name!r}{hint}; there are: {', '.join(sorted(known))}, and FILE.py:NAME for your own"
        )
    allowed = inspect.signature(function).parameters
    unknown = sorted(arguments.keys() - allowed.keys())
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in allowed.values()):
        raise ValueError(f"{name} has no argument {unknown[0]!r}; it takes {inspect.signature(function)}")
    filled = [argument for argument in list(allowed)[:given] if argument in arguments]
    if filled:
        raise ValueError(f"{name}'s argument {filled[0]} is given by the sampler: leave it out")
    if process is not None and "process" in allowed:
        arguments.setdefault("process", process)
    _check_kinds(function, name, arguments)
    missing = [argument for argument in _required(function, given) if argument not in arguments]
    if missing:
        raise ValueError(
            f"{name} is called without {', '.join(missing)}: write {name}({missing[0]}=VALUE), or give defaults"
        )
    return function, name, arguments


def _check_kinds(function: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where a number is expected by an argument's annotation, and something else is given."""
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations in a user's file may be anything
        return
    for argument, value in arguments.items():
        kinds = _kinds(hints.get(argument))
        if kinds & {int, float} and not isinstance(value, (int, float)) and type(value) not in kinds:
            raise ValueError(f"{name}'s argument {argument} must be a number, got {value!r:.80}")


def _kinds(hint: Any) -> set[Any]:
    """The types that an annotation allows; of a generic one such as tuple[int, ...] its origin."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    return {get_origin(hint) or hint}


def _required(function: Callable[..., Any], given: int) -> list[str]:
    """The arguments without defaults after the first ones, which are given."""
    parameters = list(inspect.signature(function).parameters.values())[given:]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _arguments(call: str, text: str) -> dict[str, Any]:
    """The values of a call like f(a=1, b=(2, 3.0))."""
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
            raise SyntaxError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"arguments are written like ddim(eta=1.0), with plain values, got {text!r}") from None


def _taking(room: ModuleType, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """The public functions of a room whose first arguments have these names and whose others have defaults or names."""
    found: dict[str, Callable[..., Any]] = {}
    for name in room.__all__:
        function = getattr(room, name)
        if inspect.isfunction(function):
            parameters = list(inspect.signature(function).parameters.values())
            if tuple(p.name for p in parameters[: len(names)]) == names:
                found[name] = function
    return found


_solver, _grid = solver, grid  # an option of the same name hides each
