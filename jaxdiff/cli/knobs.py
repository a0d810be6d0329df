"""Options and knobs, read from the command line by a function's signature, and checked by its types."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from jaxdiff.experiment import Experiment
from jaxdiff.options import Help, checked

Own = Mapping[str, tuple[Any, Any, str]]


def run(command: Callable[..., None], args: list[str], *, prog: str) -> None:
    """Call a command with its options.

    Args:
        command: its parameters are the options; their help is in its docstring, or a `Help` of their types.
        args: from the command line.
        prog: the program's name in its help.

    Raises:
        ValueError: an option is not in its type's `Range`.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    options = [p.replace(annotation=hints[name]) for name, p in signature.parameters.items()]
    doc = _with_help(inspect.getdoc(command) or "", {p.name: _help(p.annotation) for p in options}, {})
    command(**_read(options, doc, args, prog))


def parse_knobs(
    build: Callable[..., Experiment], args: list[str], own: Own, *, prog: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read an experiment's knobs, and the command's own options.

    Args:
        build: the experiment's function; its annotations may say how a knob is kept, see `jaxdiff.options`.
        args: from the command line.
        own: the command's options: name -> (type, default, help); `inspect.Parameter.empty` for one that must be given.
            A knob called "mesh" is none: the command says where to run.
        prog: the program's name in its help.

    Returns:
        (the knobs, the command's options), by name.

    Raises:
        ValueError: an argument of the experiment can be no knob, or a knob is not in its type's `Range`.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, keyword, default=default, annotation=kind) for name, (kind, default, _) in own.items()
    ]
    knobs = _knobs(build)
    taken = sorted({p.name for p in knobs} & own.keys())
    if taken:
        raise ValueError(f"the experiment's knob {taken[0]!r} has the name of an option of `{prog}`; rename it")
    doc = _with_help(inspect.getdoc(build) or "", {p.name: _help(p.annotation) for p in knobs}, own)
    values = _read(knobs + options, doc, args, prog)
    return {p.name: values[p.name] for p in knobs}, {name: values[name] for name in own}


def _with_help(doc: str, types: Mapping[str, str], own: Own) -> str:
    """Add to a docstring's Args what the types of knobs say of them, and the command's own options."""
    documented = set(re.findall(r"^ +(\w+):", doc, re.M))
    lines = [f"    {name}: {text}" for name, text in types.items() if text and name not in documented]
    lines += [f"    {name}: {text}" for name, (_, _, text) in own.items()]
    return "\n".join([doc if "Args:" in doc else f"{doc}\n\nArgs:", *lines])


def _help(kind: Any) -> str:
    marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((mark.text for mark in reversed(marks) if isinstance(mark, Help)), "")


def _knobs(build: Callable[..., Experiment]) -> list[inspect.Parameter]:
    """The arguments of an experiment, with their types."""
    try:
        hints = get_type_hints(build, include_extras=True)
    except NameError as error:
        raise ValueError(f"the types of experiment's arguments cannot be read: {error}") from None
    parameters = [p for p in inspect.signature(build).parameters.values() if p.name != "mesh"]
    for p in parameters:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise ValueError(f"experiment's arguments are knobs of their own name, got {p}")
        if p.name not in hints:
            raise ValueError(f"experiment's argument {p.name!r} needs a type, as in `{p.name}: int`, to be a knob")
    return [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in parameters]


def _read(options: list[inspect.Parameter], doc: str, args: list[str], prog: str) -> dict[str, Any]:
    """The options' values; help and errors of form end the program here."""

    def command(**values: Any) -> dict[str, Any]:
        return values

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: _shown(p) for p in options}
    command.__doc__ = doc
    values = tyro.cli(command, args=args, prog=prog)
    return {p.name: checked(f"--{p.name.replace('_', '-')}", p.annotation, values[p.name]) for p in options}


def _shown(option: inspect.Parameter) -> Any:
    """An option's type; if it is nothing by default, without that in its help, whose text says what happens then."""
    kind = option.annotation
    if option.default not in (None, ""):
        return kind
    bare = get_args(kind)[0] if _help(kind) else kind
    parts = [part for part in get_args(bare) if part is not type(None)]
    part = parts[0] if get_origin(bare) in (Union, types.UnionType) and len(parts) == 1 else bare
    part = get_args(part)[0] if get_origin(part) is Annotated else part
    if part not in (int, float, str, Path):
        return kind
    return Annotated[kind, tyro.conf.arg(metavar=part.__name__.upper(), help_behavior_hint="")]
