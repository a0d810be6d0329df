"""Atomic writing of files, and checked reading of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["make_folder", "parse_json", "read_json", "replacing", "sync", "write_text"]

JSON_BYTES = 64 * 2**20  # of a file; about four times the largest published vocabulary
JSON_DEPTH = 100


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Provide a path for a file that replaces `path` at the end of the `with` block.

    The old file remains until the new one is complete and on disk, also if the machine stops; after an exception it is
    unchanged, and the new file is removed.

    Args:
        path: the file; its folders are created if missing.

    Yields:
        a path in the same folder, with the same suffix.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:100]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial_path = Path(name)
    try:
        yield partial_path
        partial_path.chmod(0o666 & ~_umask())  # only the owner may read a temporary file
        sync(partial_path)
        partial_path.replace(path)
        sync(path.parent)
    finally:
        partial_path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically.

    Args:
        path: the file; its folders are created if missing.
        text: content of the file.
    """
    with replacing(path) as partial_path:
        partial_path.write_text(text)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file; `-Infinity`, `Infinity` and `NaN` are numbers.

    Args:
        path: the file.

    Raises:
        ValueError: the file does not exist, is not a JSON object, or is too large.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and JSON of at most {JSON_BYTES:,} is read")
    return parse_json(path.read_bytes(), path)


def parse_json(
    text: str | bytes, name: object, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, deep: bool = False
) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: str, or bytes in UTF-8.
        name: name of the file, for the message.
        pairs: converts the pairs (name, value) of an object; None: a dict, with the last of equal names.
        deep: allow any number of levels; the caller must check them.

    Raises:
        ValueError: the text is not a JSON object, or has more than `JSON_DEPTH` levels.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise ValueError(f"{name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold an object, got a {type(value).__name__}")
    level: list[Any] = [] if deep else [value]
    for _ in range(JSON_DEPTH):
        level = [child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent)]
        level = [child for child in level if isinstance(child, dict | list)]
        if not level:
            return value
    raise ValueError(f"{name} is nested deeper than {JSON_DEPTH} levels")


def make_folder(path: Path) -> None:
    """Create a folder and its parents if missing, and wait until their names are on disk.

    To sync a new folder keeps its entries, but not its own name in its parent.

    Args:
        path: the folder.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of entries of a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)  # the mask can only be read by setting it
    os.umask(mask)
    return mask
