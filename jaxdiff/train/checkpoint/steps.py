"""A folder of steps, with atomic creation and deletion."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from jaxdiff import storage
from jaxdiff.faults import Damaged
from jaxdiff.train.checkpoint import manifest

# Prefixes of folders that are being created or deleted. A killed process leaves them; they are never read.
_SAVING, _DELETING = ".saving-", ".deleting-"
QUARANTINE = "quarantine-"


def numbered(folder: Path) -> list[int]:
    """Return the steps by the names of folders, increasing, without a check of their content."""
    return sorted(int(name) for name in _names(folder) if _why_not(folder / name) is None)


def complete(folder: Path) -> list[int]:
    """Return the steps with valid manifests, increasing, without a check of the other files."""
    valid = []
    for step in numbered(folder):
        with contextlib.suppress(Damaged):
            manifest.read(folder / str(step))
            valid.append(step)
    return valid


def set_aside(folder: Path) -> list[str]:
    """Return the names of steps that were renamed as damaged."""
    return [name for name in _names(folder) if name.startswith(QUARANTINE)]


def ignored(folder: Path) -> dict[str, str]:
    """Return the other entries of the folder, name -> reason why it is not a step."""
    reasons = {name: _why_not(folder / name) for name in _names(folder)}
    return {name: why for name, why in reasons.items() if why and not name.startswith(QUARANTINE)}


def unfinished(folder: Path) -> dict[str, str]:
    """Return the entries of running or interrupted saves and deletions, name -> which of these."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    saves = {name: "a save that runs or was killed" for name in names if name.startswith(_SAVING)}
    return saves | {name: "a deletion that runs or was killed" for name in names if name.startswith(_DELETING)}


def identity(path: Path) -> int | None:
    """Return an id that distinguishes a folder from a later one of the same name, or None if there is no folder."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def place(folder: Path, step: int, attempt: int) -> Path:
    """Return the folder for writing a step, one for each attempt, since a failed attempt may still write."""
    return folder / f"{_SAVING}{step}-{attempt}"


def publish(written: Path, folder: Path, step: int) -> None:
    """Give a complete step its name.

    Args:
        written: current folder of the step.
        folder: folder of the steps.
        step: number of the step.
    """
    final = folder / str(step)
    if os.path.lexists(final):  # a damaged one, or anything else that is no step
        quarantine(folder, step)
    written.rename(final)
    storage.sync(folder)


def quarantine(folder: Path, step: int) -> Path:
    """Rename a damaged step.

    Args:
        folder: folder of the steps.
        step: number of the step.

    Returns:
        the new path of the step.
    """
    aside, count = folder / f"{QUARANTINE}{step}", 1
    while os.path.lexists(aside):
        count += 1
        aside = folder / f"{QUARANTINE}{step}-{count}"
    (folder / str(step)).rename(aside)
    storage.sync(folder)
    return aside


def remove(folder: Path, step: int) -> None:
    """Delete a step; it is renamed first.

    Args:
        folder: folder of the steps.
        step: number of the step.
    """
    gone = folder / f"{_DELETING}{step}"
    (folder / str(step)).rename(gone)
    storage.sync(folder)
    shutil.rmtree(gone)


def clean_up(folder: Path) -> None:
    """Remove the files of interrupted saves and deletions."""
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
