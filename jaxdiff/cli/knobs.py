"""An experiment's knobs, read from the command line by its function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import tyro

from jaxdiff.experiment import Experiment, Kept


def parse_knobs(
    build: Callable[..., Experiment], args: list[str], own: Mapping[str, tuple[Any, Any, str]], *, prog: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read an experiment's knobs, and the command's own options beside them.

    Args:
        build: the experiment's function; its annotations may say how a knob is kept, see `experiment.Kept`.
        args: from the command line.
        own: the command's options: name -> (type, default, help); `inspect.Parameter.empty` for one that must be given.
            A knob called "mesh" is none: the command says where to run.
        prog: the program's name in its help.

    Returns:
        (the knobs, the command's options), by name.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, keyword, default=default, annotation=kind) for name, (kind, default, _) in own.items()
    ]
    hints = get_type_hints(build, include_extras=True)
    parameters = inspect.signature(build).parameters.items()
    knobs = [p.replace(annotation=hints[name], kind=keyword) for name, p in parameters if name != "mesh"]
    taken = sorted({p.name for p in knobs} & own.keys())
    if taken:
        raise ValueError(f"the experiment's knob {taken[0]!r} has the name of an option of `{prog}`; rename it")

    def command(**values: Any) -> dict[str, Any]:
        return values

    command.__signature__ = inspect.Signature(knobs + options)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in knobs + options}
    command.__doc__ = "\n".join([inspect.getdoc(build) or "", *(f"    {name}: {h}" for name, (_, _, h) in own.items())])
    values = tyro.cli(command, args=args, prog=prog)
    return {p.name: _kept(values[p.name], hints[p.name]) for p in knobs}, {name: values[name] for name in own}


def _kept(value: Any, hint: Any) -> Any:
    for mark in getattr(hint, "__metadata__", ()):
        value = mark.how(value) if isinstance(mark, Kept) else value
    return value
