"""What a run was started with, in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdiff import storage
from jaxdiff.faults import Damaged

KNOBS = "run.json"


def write_knobs(workdir: str | os.PathLike[str], knobs: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Put a run's knobs into `workdir/run.json`, and refuse a folder that belongs to another run.

    Args:
        workdir: the run's folder; made if missing.
        knobs: name -> a value that JSON can hold.
        may_change: as for `check_knobs`.

    Raises:
        ValueError: as `check_knobs` does.
    """
    check_knobs(workdir, knobs, may_change=may_change)
    if jax.process_index() == 0:
        storage.write_text(Path(workdir) / KNOBS, json.dumps(dict(knobs), indent=2) + "\n")


def check_knobs(workdir: str | os.PathLike[str], knobs: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Refuse a folder that belongs to another run; one without a run is good.

    Args:
        workdir: the run's folder.
        knobs: name -> a value that JSON can hold.
        may_change: knobs that may differ from what is written, since they only extend the run ("steps").

    Raises:
        ValueError: the folder holds other knobs, and the message lists each as old -> new; or JSON cannot hold one.
    """
    new = {}
    for name, value in knobs.items():
        try:
            new[name] = json.loads(json.dumps(value))  # tuples become lists, as they do in the file
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"the knob {name!r} is a {type(value).__name__}, which {KNOBS} cannot hold") from None
    if not has_knobs(workdir):
        return
    old = read_knobs(workdir)
    missing = object()
    changed = [
        f"{name}: {json.dumps(old[name]) if name in old else 'absent'} -> "
        f"{json.dumps(new[name]) if name in new else 'absent'}"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change and old.get(name, missing) != new.get(name, missing)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(f"{workdir} holds a run with other knobs; choose another workdir:\n  {listed}")


def has_knobs(workdir: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's: whether there are knobs in it."""
    return (Path(workdir) / KNOBS).is_file()


def read_knobs(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the knobs of the run in a folder.

    Raises:
        ValueError: there is no `run.json`.
        Damaged: it is no JSON, or no names and values.
    """
    path = Path(workdir) / KNOBS
    if not has_knobs(workdir):
        raise ValueError(f"{workdir} is not a run: it has no {KNOBS}")
    try:
        return storage.read_json(path)
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from None
