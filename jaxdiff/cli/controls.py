"""The option `--control` of the commands that draw with a text-to-image directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxdiff.imagine import Hint, make_hint

__all__ = ["Controls", "read_controls"]

# A ControlNet, a T2I-Adapter or an IP-Adapter; the picture that it follows, see `imagine.HintFile`; and a scale.
Controls = Annotated[tuple[tuple[Path, str, float], ...], tyro.conf.UseAppendAction]


def read_controls(controls: Controls) -> tuple[list[Path], list[Hint]]:
    """Return where what steers lies, and what is followed.

    Args:
        controls: of the command line.

    Raises:
        ValueError: as by `imagine.make_hint`.
    """
    return [path for path, _, _ in controls], [make_hint(text, scale) for _, text, scale in controls]
