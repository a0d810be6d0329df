"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdiff.faults import Damaged

__all__ = ["read_json", "replacing", "sync", "write_text"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place to write a file to, which replaces `path` at the end of the `with` block.

    What stood at `path` is there until the new file is whole and on disk, also if the machine stops; after an exception
    it is as it was, and nothing of the new file is left.

    Args:
        path: the file; its folders are made if missing.

    Yields:
        A path beside it, with the same ending.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:100]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o666 & ~_umask())  # a temporary file is its owner's alone
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text, whole or not at all.

    Args:
        path: the file; its folders are made if missing.
        text: what it shall hold.
    """
    with replacing(path) as beside:
        beside.write_text(text)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that holds names and values.

    Args:
        path: the file.

    Returns:
        Name -> value.

    Raises:
        Damaged: it is no text, no JSON, nested too deeply, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise Damaged(f"{path} is damaged: it is not text") from None
    except RecursionError:
        raise Damaged(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is damaged: it must hold names and values, got {found!r:.80}")
    return found


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to ask for it
    os.umask(mask)
    return mask
