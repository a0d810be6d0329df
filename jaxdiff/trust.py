"""Ownership of code in a run's folder: executed files must belong to the user, unless the user trusts them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import all_suffixes
from pathlib import Path

__all__ = ["check_own", "trusting"]

# Folders of arrays in a run's folder: they contain no modules, and may contain many files.
DATA = {"checkpoints", "snapshots"}


_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Let `check_own` pass within, if so: of a run that is trusted, and of those that it is made of."""
    token = _TRUSTED.set(_TRUSTED.get() or trust)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_own(script: Path) -> None:
    """Refuse to execute a file, and the modules in its folder, if other users may have written them.

    All of them and their folders must belong to the user, and no other user may have permission to write them. A folder
    with the sticky bit, like /tmp, may be writable by all, since the files of other users in it belong to them. A group
    with the user as its only member counts as the user.

    Args:
        script: the file, in a run's folder.

    Raises:
        ValueError: one of the files belongs to another user, is writable by others, or is a link; the message names it.
    """
    if _TRUSTED.get() or not hasattr(os, "geteuid"):  # a system without such owners
        return
    for path in _executed(script.parent.resolve()):
        fault = _fault(path)
        if fault:
            raise ValueError(
                f"{script} and the modules in its folder are programs, and would be executed; but {path} {fault}. If "
                f"you have read them and trust their authors, pass --trust (in Python, trust=True)"
            )


def _executed(run: Path) -> Iterator[Path]:
    """Yield the folder, and all folders and files in it that an import may find."""
    suffixes = tuple(all_suffixes())
    yield run
    for folder, names, files in os.walk(run):
        within = Path(folder)
        if within == run:
            names[:] = [name for name in names if name not in DATA]
        yield from (within / name for name in sorted(names))
        yield from (within / name for name in sorted(files) if name.endswith(suffixes))


def _fault(path: Path) -> str | None:
    """Problem of a path's owner or mode, or None."""
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
    """Whether a group is the user's private group, with the same name and without other members."""
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
