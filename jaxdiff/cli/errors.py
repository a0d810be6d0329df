"""A person's mistake told from a bug: the one ends with a sentence, the other keeps its traceback."""

from __future__ import annotations

import dis
from pathlib import Path
from types import CodeType

import jaxdiff
from jaxdiff.experiment import UserError

_PACKAGE = Path(jaxdiff.__file__).parent


def sentence(error: Exception) -> str | None:
    """Say what was wrong with what a person gave, or None for an error that only its traceback explains.

    A person's mistakes are what jaxdiff itself refuses, by a `raise ValueError` of its own; what an experiment refuses
    by a `UserError`; and what the file system refuses. A ValueError out of JAX, numpy or an experiment is none.

    Args:
        error: what ended a command.
    """
    if isinstance(error, UserError) or (isinstance(error, ValueError) and _refused_here(error)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return None


def _refused_here(error: Exception) -> bool:
    """Whether a `raise` of ours began it; JAX leaves its frames out of tracebacks, so that our last is not enough."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    return Path(code.co_filename).is_relative_to(_PACKAGE) and _raises(code, trace.tb_lineno)


def _raises(code: CodeType, line: int) -> bool:
    """Whether a line of a function is a `raise`; a frame that JAX has filtered tells its line, not its instruction."""
    parts = (code.co_code[start:end:2] for start, end, at in code.co_lines() if at == line)
    return any(dis.opmap["RAISE_VARARGS"] in part for part in parts)
