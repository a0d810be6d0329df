"""The manifest of a step: its arrays, and the size and hash of every file in its folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from errno import EIO, EISDIR, ELOOP, ENOENT, ENOTDIR
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash

from jaxdiff import storage
from jaxdiff.faults import Damaged

NAME = "manifest.json"
LARGE = 16 * 2**20  # bytes from which a file is verified while it is read, not before
_LARGEST = 64 * 2**20  # bytes of a manifest, about 100 per array
_READ = 2**20  # bytes at a time: they fit into a core's cache
_THREADS = min(16, os.cpu_count() or 1)
# Errors of a file that has changed. Other errors, e.g. of an unavailable server, do not concern the file.
_GONE = {EIO, EISDIR, ELOOP, ENOENT, ENOTDIR}


class File(NamedTuple):
    """A file's size in bytes and its 128-bit XXH3 hash, which detects accidental changes and is faster than reading."""

    size: int
    xxh3: str


class Manifest(NamedTuple):
    """A step, its arrays (name -> shape and dtype) and its files (path below its folder -> size and hash)."""

    step: int
    arrays: dict[str, jax.ShapeDtypeStruct]
    files: dict[str, File]


def files_of(folder: Path) -> list[str]:
    """Return the sorted paths of all files and links in a folder, without its manifest; links are not followed."""
    paths = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        paths += [os.path.relpath(os.path.join(place, name), folder) for name in files + links]
    return sorted(set(paths) - {NAME})


def seal(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Wait until files are on disk, and hash them.

    Args:
        folder: folder of the step.
        names: paths below the folder.

    Returns:
        path -> size and hash.
    """
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: storage.sync(folder / name), names))
    sizes = {name: (folder / name).stat().st_size for name in names}
    sealed = {}
    for name, digest in _digests(folder, sizes).items():
        if isinstance(digest, OSError):
            raise digest
        sealed[name] = File(sizes[name], digest)
    return sealed


def write(folder: Path, step: int, arrays: Mapping[str, Any], files: Mapping[str, File]) -> None:
    """Write a step's manifest, and wait until it and all entries of its folder are on disk.

    Args:
        folder: folder of the step.
        step: number of the step.
        arrays: name -> anything with a shape and a dtype.
        files: path -> size and hash.
    """
    content = {
        "arrays": {n: {"dtype": np.dtype(x.dtype).name, "shape": list(x.shape)} for n, x in arrays.items()},
        "files": {name: file._asdict() for name, file in files.items()},
        "step": step,
    }
    for place, _, _ in os.walk(folder):
        storage.sync(Path(place))
    storage.write_text(folder / NAME, _text(content))


def read(folder: Path) -> Manifest:
    """Read the manifest of a step.

    Args:
        folder: folder of the step, named by its number.

    Raises:
        Damaged: the manifest is missing, has changed, or is of another step.
    """
    path = folder / NAME
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            raise Damaged(f"{NAME} is no file, or one of more than {_LARGEST} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{NAME} {_refused(error)}") from None
    try:
        content = storage.parse_json(text, NAME)
        unchanged = _text({name: content[name] for name in ("arrays", "files", "step")}).encode() == text
    except (ValueError, KeyError):
        unchanged = False
    if not unchanged:
        raise Damaged(f"{NAME} has changed")
    if str(content["step"]) != folder.name:
        raise Damaged(f"{NAME} is that of step {content['step']}")
    arrays = {n: jax.ShapeDtypeStruct(x["shape"], np.dtype(x["dtype"])) for n, x in content["arrays"].items()}
    return Manifest(content["step"], arrays, {name: File(**file) for name, file in content["files"].items()})


def small(files: Mapping[str, File]) -> set[str]:
    """Return the paths of the files of less than `LARGE` bytes, e.g. the index, but not the arrays."""
    return {name for name, file in files.items() if file.size < LARGE}


def problems(folder: Path, files: Mapping[str, File], names: Collection[str]) -> list[str]:
    """Check some of a step's files, and return the problems, a line each.

    Args:
        folder: folder of the step.
        files: files in its manifest.
        names: names of the files to check; a file that is missing in the manifest is a problem.
    """
    by_name = {name: _mismatch(folder / name, files.get(name)) for name in names}
    same = [name for name in names if not by_name[name]]
    for name, digest in _digests(folder, same).items():
        if isinstance(digest, OSError):
            by_name[name] = _refused(digest)
        elif digest != files[name].xxh3:
            by_name[name] = "has changed"
    return [f"{name} {problem}" for name, problem in by_name.items() if problem]


def _mismatch(path: Path, file: File | None) -> str | None:
    """Problem of a file that is detected without reading it, or None."""
    if file is None:
        return "is no part of it"
    try:
        info = path.lstat()
    except OSError as error:
        return _refused(error)
    if not stat.S_ISREG(info.st_mode):
        return "is a link" if stat.S_ISLNK(info.st_mode) else "is no file"
    return None if info.st_size == file.size else f"has {info.st_size} bytes, not {file.size}"


def _refused(error: OSError) -> str:
    if error.errno not in _GONE:
        raise error
    return "is missing" if error.errno in (ENOENT, ENOTDIR) else f"cannot be read ({error.strerror})"


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str | OSError]:
    """Return the hashes of files, or the error for a file that cannot be read."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> str | OSError:
    digest, buffer = xxhash.xxh3_128(), bytearray(_READ)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            while count := os.readv(handle, [buffer]):
                digest.update(memoryview(buffer)[:count])
        finally:
            os.close(handle)
    except OSError as error:
        return error
    return digest.hexdigest()


def _text(content: Any) -> str:
    """Text of the manifest, in canonical form and with a hash of its content, so that any change is detected."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({"xxh3": xxhash.xxh3_128_hexdigest(text.encode()), **content}, indent=1, sort_keys=True) + "\n"
