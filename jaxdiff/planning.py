"""What a plan leaves undone: it writes nothing to the user's folders, and fits nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

__all__ = ["planning", "scratch"]

_SCRATCH: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextmanager
def planning() -> Iterator[None]:
    """Within, experiments are built for their shapes alone, and what they would write goes to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="jaxdiff-plan-") as folder:
        token = _SCRATCH.set(Path(folder))
        try:
            yield
        finally:
            _SCRATCH.reset(token)


def scratch() -> Path | None:
    """Return the temporary folder within `planning`; None outside, where an experiment is built to be run."""
    return _SCRATCH.get()
