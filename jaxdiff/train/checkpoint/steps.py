"""A folder of steps: which folders in it are one, and how one comes and goes without ever being seen in part."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from jaxdiff import storage
from jaxdiff.faults import Damaged
from jaxdiff.train.checkpoint import manifest

# Names of what is being made or removed. A process that dies leaves them; nothing reads them.
_SAVING, _DELETING = ".saving-", ".deleting-"
QUARANTINE = "quarantine-"


def numbered(folder: Path) -> list[int]:
    """Return the steps that folders claim to be by their names, increasing; whether they are is not looked at."""
    return sorted(int(name) for name in _names(folder) if _why_not(folder / name) is None)


def whole(folder: Path) -> list[int]:
    """Return the steps whose manifests are good, increasing; the other files are not looked at."""
    found = []
    for step in numbered(folder):
        with contextlib.suppress(Damaged):
            manifest.read(folder / str(step))
            found.append(step)
    return found


def set_aside(folder: Path) -> list[str]:
    """Return the names of the steps that were found damaged."""
    return [name for name in _names(folder) if name.startswith(QUARANTINE)]


def ignored(folder: Path) -> dict[str, str]:
    """Return what else is in the folder, name -> why it is no step."""
    found = {name: _why_not(folder / name) for name in _names(folder)}
    return {name: why for name, why in found.items() if why and not name.startswith(QUARANTINE)}


def unfinished(folder: Path) -> dict[str, str]:
    """Return what a save or a deletion that runs, or was killed, has there."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    found = {name: "a save that runs or was killed" for name in names if name.startswith(_SAVING)}
    return found | {name: "a deletion that runs or was killed" for name in names if name.startswith(_DELETING)}


def identity(path: Path) -> int | None:
    """Return what tells a folder from another one of its name later, or None where there is none."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def place(folder: Path, step: int, attempt: int) -> Path:
    """Return the folder in which a step is written; one for each attempt, since a failed one may not have ended."""
    return folder / f"{_SAVING}{step}-{attempt}"


def publish(written: Path, folder: Path, step: int) -> None:
    """Give a step that is whole and on disk its name.

    Args:
        written: where it is.
        folder: of the steps.
        step: its number.
    """
    final = folder / str(step)
    if os.path.lexists(final):  # a damaged one, or anything else that is no step
        quarantine(folder, step)
    written.rename(final)
    storage.sync(folder)


def quarantine(folder: Path, step: int) -> Path:
    """Take the name of a step from what is none, and keep it.

    Args:
        folder: of the steps.
        step: its number.

    Returns:
        Where it is now.
    """
    aside, count = folder / f"{QUARANTINE}{step}", 1
    while os.path.lexists(aside):
        count += 1
        aside = folder / f"{QUARANTINE}{step}-{count}"
    (folder / str(step)).rename(aside)
    storage.sync(folder)
    return aside


def remove(folder: Path, step: int) -> None:
    """Delete a step: it loses its name first.

    Args:
        folder: of the steps.
        step: its number.
    """
    gone = folder / f"{_DELETING}{step}"
    (folder / str(step)).rename(gone)
    storage.sync(folder)
    shutil.rmtree(gone)


def clean_up(folder: Path) -> None:
    """Remove what a process that died left of saves and deletions."""
    for name in unfinished(folder):
        path = folder / name
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith((_SAVING, _DELETING)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _why_not(path: Path) -> str | None:
    name = path.name
    if not (name.isascii() and name.isdecimal() and name == str(int(name[:20]))):
        return "its name is not a step's"
    if path.is_symlink():
        return "it is a link"
    return None if path.is_dir() else "it is not a folder"
