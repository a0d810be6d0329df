"""The knobs of a run, in a file in its folder."""

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
    """Write a run's knobs to `workdir/run.json`; reject a folder of another run.

    Args:
        workdir: the run's folder; created if missing.
        knobs: name -> a value for JSON.
        may_change: as for `check_knobs`.

    Raises:
        ValueError: as for `check_knobs`.
    """
    check_knobs(workdir, knobs, may_change=may_change)
    if jax.process_index() == 0:
        storage.write_text(Path(workdir) / KNOBS, json.dumps(dict(knobs), indent=2) + "\n")


def check_knobs(workdir: str | os.PathLike[str], knobs: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Reject a folder of another run; a folder without a run is valid.

    Args:
        workdir: the run's folder.
        knobs: name -> a value for JSON.
        may_change: knobs that may differ from the file, since they only extend the run ("steps").

    Raises:
        ValueError: the folder holds other knobs (the message lists each as old -> new), or JSON cannot represent one.
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
    """Whether a folder is that of a run, i.e. holds knobs."""
    return (Path(workdir) / KNOBS).is_file()


def read_knobs(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the knobs of the run in a folder.

    Raises:
        ValueError: there is no `run.json`.
        Damaged: the file is not JSON, or not an object.
    """
    path = Path(workdir) / KNOBS
    if not has_knobs(workdir):
        raise ValueError(f"{workdir} is not a run: it has no {KNOBS}")
    try:
        return storage.read_json(path)
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from None
