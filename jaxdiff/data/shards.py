"""Arrays computed beforehand, latents or features of texts say, in the .npz files of a folder."""

import contextlib
import functools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Beside the files of a folder that is still being written, or never was to the end.
UNFINISHED = "unfinished"


class Shards:
    """A random-access sequence of examples: one in each row of the arrays of all files, by the files' sorted names.

    The files are mapped into memory, so that an example costs its own bytes alone; numpy.savez writes them.
    """

    def __init__(self, folder: str | Path, example: Mapping[str, Any]):
        """Describe the examples; the files are opened with the first question for one.

        Args:
          folder: of the .npz files.
          example: the arrays by name, of which shape and dtype of one example are looked at. What is stored in another
            precision is converted.
        """
        self.folder = Path(folder)
        self.example = dict(example)

    def __reduce__(self):
        # A process that reads maps the files anew: what is mapped would be sent whole.
        return Shards, (self.folder, self.example)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[file - 1]) if file else 0)
        arrays = self._files[file]
        return {name: np.asarray(arrays[name][row], one.dtype) for name, one in self.example.items()}

    @functools.cached_property
    def _files(self) -> list[dict[str, np.ndarray]]:
        if (self.folder / UNFINISHED).exists():
            raise ValueError(f"{self.folder} is half of a data set: what should write it has not come to its end")
        paths = sorted(self.folder.glob("[!.]*.npz"))
        if not paths:
            raise ValueError(f"no .npz files in {self.folder}: `jaxdiff encode` writes them")
        return [self._open(path) for path in paths]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(next(iter(arrays.values()))) for arrays in self._files])

    def _open(self, path: Path) -> dict[str, np.ndarray]:
        arrays = open_npz(path)
        missing = sorted(self.example.keys() - arrays.keys())
        if missing:
            raise ValueError(f"{path} must hold {', '.join(self.example)}; it lacks {', '.join(missing)}")
        arrays = {name: arrays[name] for name in self.example}
        for name, one in self.example.items():
            found = arrays[name]
            if found.shape[1:] != one.shape or not np.can_cast(found.dtype, one.dtype, "same_kind"):
                raise ValueError(
                    f"{name!r} in {path} must be {np.dtype(one.dtype)}{['N', *one.shape]} or of another precision, "
                    f"got {found.dtype}{list(found.shape)}"
                )
        _check_rows(path, arrays)
        return arrays


def open_table(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of one .npz file, a row of each for everything that can be asked for by its number.

    Args:
      path: the file.

    Returns:
      The arrays by name.

    Raises:
      ValueError: if there is no such file, or it does not hold arrays of equally many rows.
    """
    arrays = read_npz(path)
    _check_rows(path, arrays)
    return arrays


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file.

    Args:
      path: the file.

    Returns:
      The arrays by name.

    Raises:
      ValueError: if there is no such file, or it is damaged or of another kind.
    """
    with _readable(path), zipfile.ZipFile(path), np.load(path) as file:
        return {name: file[name] for name in file.files}


def open_npz(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a file into memory, without reading them.

    Args:
      path: an .npz file as numpy.savez writes it, without compression.

    Returns:
      The arrays by name, read-only.

    Raises:
      ValueError: if there is no such file, or it is damaged, compressed or of another kind.
    """
    arrays: dict[str, np.ndarray] = {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, which hinders reading at random; write it with numpy.savez")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                header = stream.tell()
            arrays[member.filename.removesuffix(".npy")] = np.memmap(
                path, dtype, "r", _begin(path, member) + header, shape, "F" if fortran else "C"
            )
    return arrays


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        yield
    except (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path} as an .npz file: {error}") from error


def _begin(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after a header of 30, which ends with the lengths of two fields behind it."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return member.header_offset + 30 + int(lengths.sum())


def _check_rows(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    rows = {array.shape[:1] for array in arrays.values()}
    if len(rows) != 1 or () in rows:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"{path} must hold arrays of equally many rows, got {shapes}")
