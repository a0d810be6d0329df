"""Whose code a run's folder holds: what is executed has to be the user's own, unless they say that they trust it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

__all__ = ["check_own"]

# Of a run's folder: arrays, which no experiment imports and which may be many files.
DATA = {"checkpoints", "snapshots"}


def check_own(script: Path) -> None:
    """Refuse to execute a file, and the modules that it may import from beside it, where others may have written them.

    All of them and the folders that they lie in must belong to the user, and nobody else may write to them. A folder
    whose sticky bit is set, as that of /tmp, may be written by all: what others put there belongs to them. A group of
    which the user is the only member is nobody else.

    Args:
        script: the file, in a run's folder.

    Raises:
        ValueError: one of them is another's, may be written by others, or is a link; and the message says which.
    """
    if not hasattr(os, "geteuid"):  # a system without such owners
        return
    for path in _executed(script.parent.resolve()):
        fault = _fault(path)
        if fault:
            raise ValueError(
                f"{script} and the modules beside it are programs, and would be executed; but {path} {fault}. If you "
                f"have read them and trust who wrote them, say so: --trust (in Python, trust=True)"
            )


def _executed(run: Path) -> Iterator[Path]:
    """The folder, and within it all folders and files that an import may find."""
    suffixes = tuple(all_suffixes())
    yield run
    for folder, names, files in os.walk(run):
        within = Path(folder)
        if within == run:
            names[:] = [name for name in names if name not in DATA]
        yield from (within / name for name in sorted(names))
        yield from (within / name for name in sorted(files) if name.endswith(suffixes))


def _fault(path: Path) -> str | None:
    """What is wrong with a path's owner and mode."""
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return "is a link"
    if info.st_uid != os.geteuid():
        return f"belongs to {_user(info.st_uid)}, not to you"
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX:
        return None
    if info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not _is_own_group(info.st_gid)):
        return f"may be written by others (mode {stat.S_IMODE(info.st_mode):o})"
    return None


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, of the same name and without other members."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == number and set(group.gr_mem) <= {user.pw_name}


def _user(number: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except KeyError:
        return f"user {number}"
