"""Every public function of jaxdiff.solvers that is annotated `-> Solver`, with its default settings, by name."""

import typing

from jaxdiff import solvers


def _found():
    public = {name: getattr(solvers, name) for name in solvers.__all__ if not isinstance(getattr(solvers, name), type)}
    return {name: f() for name, f in public.items() if typing.get_type_hints(f).get("return") is solvers.Solver}


SOLVERS = _found()
