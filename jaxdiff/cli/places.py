"""Places to write, tried before the work whose results they shall hold."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path


def try_file(path: Path, option: str) -> None:
    """Make sure that a file can be written, and leave everything as it is.

    Args:
        path: the file; it and its folders may be missing.
        option: that names it, for the message.

    Raises:
        ValueError: it is an address of a bucket, a folder, a device or pipe, or below a file.
        OSError: the file system does not let this process write there.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} must be a file, and {path} is a {'folder' if path.is_dir() else 'device or pipe'}")
    _try_below(path.parent, path, option)
    if path.exists():
        with path.open("ab"):
            pass


def try_folder(path: Path, option: str) -> None:
    """Make sure that files can be written into a folder, and leave everything as it is.

    Args:
        path: the folder; it and those above it may be missing.
        option: that names it, for the message.

    Raises:
        ValueError: it is an address of a bucket, a file, or below one.
        OSError: the file system does not let this process write there.
    """
    _try_below(path, path, option)


def try_out(path: Path) -> None:
    """Make sure that `--out` can be written, a file if its name has a suffix and a folder otherwise."""
    (try_file if path.suffix else try_folder)(path, "--out")


def _try_below(folder: Path, path: Path, option: str) -> None:
    # A path has lost one of the slashes of an address.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(
            f"{option} must be a place in this machine's file system, got {str(path).replace(':/', '://', 1)}: "
            "mount the bucket, or copy what is written afterwards"
        )
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path} cannot be written: {folder} is a file")
    # Permissions do not tell of a file system that is read-only, and not to an administrator.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
