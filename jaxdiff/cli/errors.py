"""Distinction of user errors, which end with one sentence, from bugs, which keep their tracebacks."""

from __future__ import annotations

import dis
from pathlib import Path
from types import CodeType

import jaxdiff
from jaxdiff.experiment import UserError

_PACKAGE = Path(jaxdiff.__file__).parent
_EXTRAS = {"safetensors": "interop", "tokenizers": "interop"}  # packages that some commands need, by their extras


def sentence(error: Exception) -> str | None:
    """Return the message of a user error, or None for an error that needs its traceback.

    User errors are ValueErrors that jaxdiff itself raises, `UserError`s of experiments, errors of the file system,
    and packages of an extra that are not installed. A ValueError of JAX, numpy or an experiment is not a user error.

    Args:
        error: the error that ended a command.
    """
    if isinstance(error, UserError) or (isinstance(error, ValueError) and _refused_here(error)):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return f"this needs {error.name}, which is missing: pip install 'jaxdiff[{_EXTRAS[error.name]}]'"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return None


def _refused_here(error: Exception) -> bool:
    """Whether a `raise` of jaxdiff raised it; JAX hides its frames, so that jaxdiff's last frame is not sufficient."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    return Path(code.co_filename).is_relative_to(_PACKAGE) and _raises(code, trace.tb_lineno)


def _raises(code: CodeType, line: int) -> bool:
    """Whether a line of a function is a `raise`; frames that JAX has filtered have a line, but no instruction."""
    parts = (code.co_code[start:end:2] for start, end, at in code.co_lines() if at == line)
    return any(dis.opmap["RAISE_VARARGS"] in part for part in parts)
