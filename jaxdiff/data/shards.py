"""Precomputed arrays, e.g. latents or text embeddings, in the .npz files of a folder."""

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.captions import check_captions
from jaxdiff.data.npz import Array, check_npz, map_npz, read_npz

# A file of this name marks a folder that is incomplete: it is being written, or its writing was interrupted.
UNFINISHED = "unfinished"


class NpzShards:
    """A random-access sequence of examples: the rows of the arrays of all files, in the order of the files' names.

    The files, written by numpy.savez, are mapped into memory, so that reading an example reads only its bytes. The
    first access to a file reads all of its arrays once and compares them with the checksums in the file.
    """

    def __init__(self, folder: str | Path, example: Mapping[str, Any], *, captions: str = ""):
        """Describe the examples; the files are opened on first access.

        Args:
            folder: folder of the .npz files.
            example: arrays of one example by name, or anything with a shape and a dtype; other precisions are
                converted.
            captions: name of an array of strings, [N], or [N, K] for several captions of an example, of which the empty
                ones are left out; examples then have "captions". Empty: without captions.
        """
        self.folder = Path(folder)
        self.example = dict(example)
        self._captions = captions
        self.reads_captions = bool(captions)

    def __reduce__(self):
        # A worker maps the files itself: pickling would send mapped arrays in full.
        return functools.partial(NpzShards, captions=self._captions), (self.folder, self.example)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        file = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[file - 1]) if file else 0)
        shard = self._files[file]
        shard.check()
        arrays = shard.arrays
        example: dict[str, Any] = {
            name: np.asarray(arrays[name][position], spec.dtype) for name, spec in self.example.items()
        }
        if self._captions:
            texts = np.ravel(arrays[self._captions][position]).tolist()
            (example["captions"],) = check_captions([texts], [f"example {index} of {self.folder}"])
        return example

    @functools.cached_property
    def _files(self) -> list["_Shard"]:
        if (self.folder / UNFINISHED).exists():
            raise ValueError(f"{self.folder} is incomplete: it is being written, or its writing was interrupted")
        paths = sorted(self.folder.glob("[!.]*.npz"))
        if not paths:
            raise ValueError(f"no .npz files in {self.folder}: `jaxdiff encode` writes them")
        return [self._open(path) for path in paths]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(next(iter(shard.arrays.values()))) for shard in self._files])

    def _open(self, path: Path) -> "_Shard":
        arrays, entries = map_npz(path)
        names = [*self.example, *filter(None, [self._captions])]
        missing = sorted(set(names) - arrays.keys())
        if missing:
            raise ValueError(f"{path} must hold {', '.join(names)}; it lacks {', '.join(missing)}")
        arrays = {name: arrays[name] for name in names}
        if self._captions and (arrays[self._captions].dtype.kind != "U" or arrays[self._captions].ndim > 2):
            found = arrays[self._captions]
            raise ValueError(
                f"{self._captions!r} in {path} must be strings [N] or [N, K], got {found.dtype}{list(found.shape)}"
            )
        for name, spec in self.example.items():
            array = arrays[name]
            if array.shape[1:] != spec.shape or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                raise ValueError(
                    f"{name!r} in {path} must be {np.dtype(spec.dtype)}{['N', *spec.shape]} or of another precision, "
                    f"got {array.dtype}{list(array.shape)}"
                )
        _check_rows(path, arrays)
        return _Shard(path, arrays, [entries[name] for name in arrays])


class _Shard:
    """A file of examples."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray], entries: list[Array]):
        self._path, self.arrays, self._entries = path, arrays, entries
        self._verified, self._lock = False, threading.Lock()

    def check(self) -> None:
        """Compare the file with its checksums, once; other threads wait."""
        if self._verified:
            return
        with self._lock:
            if not self._verified:
                check_npz(self._path, self._entries)
                self._verified = True


def load_embeddings(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of one .npz file, for lookup of rows by index.

    Args:
        path: the file.

    Returns:
        the arrays by name.

    Raises:
        ValueError: the file does not exist, is damaged, or its arrays differ in their numbers of rows.
    """
    arrays = read_npz(path)
    _check_rows(path, arrays)
    return arrays


def _check_rows(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    rows = {array.shape[:1] for array in arrays.values()}
    if len(rows) != 1 or () in rows:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"{path} must hold arrays of equally many rows, got {shapes}")
