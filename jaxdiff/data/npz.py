"""Arrays in numpy's .npz files, which may be untrusted: sizes are checked before memory is allocated."""

import concurrent.futures
import contextlib
import errno
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jaxdiff.faults import Damaged

# Arrays may be this many times as large as their file, or as large as FREE: compressed images have less than a tenth.
RATIO, FREE = 100, 64 * 2**20
CHUNK = 4 * 2**20


class Array(NamedTuple):
    """An array in a file.

    Attributes:
        name: name without the suffix.
        member: entry in the archive.
        shape: shape of the array.
        dtype: dtype of the array.
        fortran: whether the first axis varies fastest.
        header: bytes before the elements.
    """

    name: str
    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    header: int


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file.

    Args:
        path: the file.

    Returns:
        the arrays by name.

    Raises:
        ValueError: the file does not exist, has another format, or contains objects, or far more data than its size
            suggests; `faults.Damaged`: an array differs from what was written.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        arrays = list(_arrays(archive))
        total, size = sum(array.member.file_size for array in arrays), Path(path).stat().st_size
        if total > max(FREE, RATIO * size):
            raise ValueError(f"its arrays have {total:,} bytes and it has {size:,}: more than {RATIO} times as many")
        return {array.name: _read(archive, array) for array in arrays}


def read_npy(path: str | Path) -> np.ndarray:
    """Read the array of an .npy file.

    Args:
        path: the file.

    Returns:
        the array.

    Raises:
        ValueError: the file does not exist, has another format, or contains objects, or another number of bytes than
            its shape has.
    """
    with _readable(path, ".npy"), Path(path).open("rb") as stream:
        shape, _, dtype = _header(stream)
        size, held = math.prod(shape) * dtype.itemsize, Path(path).stat().st_size - stream.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or size != held:
            raise ValueError(f"an array of {dtype}{list(shape)} would have {size:,} bytes, and it has {held:,}")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)


def map_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Array]]:
    """Map the arrays of a file into memory, without reading them.

    Args:
        path: an .npz file as numpy.savez writes it, without compression.

    Returns:
        the arrays by name, read-only, and the inputs of `check_npz` by name.

    Raises:
        ValueError: the file does not exist, is damaged or compressed, or has another format.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        arrays = {array.name: array for array in _arrays(archive)}
        for array in arrays.values():
            if array.member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, which prevents random access; write it with numpy.savez")
        return {name: _mapped(path, array) for name, array in arrays.items()}, arrays


def _mapped(path: Path, array: Array) -> np.ndarray:
    size, begin = math.prod(array.shape) * array.dtype.itemsize, _begin(path, array.member) + array.header
    if begin + size > path.stat().st_size:
        raise ValueError(f"{array.name!r:.80} is longer than the file")
    if not size:  # an empty map is impossible
        return np.zeros(array.shape, array.dtype)
    return np.memmap(path, array.dtype, "r", begin, array.shape, "F" if array.fortran else "C")


def check_npz(path: Path, arrays: Iterable[Array]) -> None:
    """Compare the bytes of arrays with the checksums in their file, each array in a thread.

    Args:
        path: the file.
        arrays: the arrays to check.

    Raises:
        Damaged: the bytes differ from those that were written.
    """
    arrays = list(arrays)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(arrays))) as pool:
        for array, crc in zip(arrays, pool.map(lambda entry: _crc(path, entry.member), arrays), strict=True):
            if crc != array.member.CRC:
                raise Damaged(
                    f"{path}: the bytes of {array.name!r} are not those that were written: the checksum is "
                    f"{crc:08x}, and {array.member.CRC:08x} is stored; write the file again"
                )


def _crc(path: Path, member: zipfile.ZipInfo) -> int:
    crc, left, buffer = 0, member.file_size, memoryview(bytearray(min(CHUNK, member.file_size)))
    with path.open("rb", buffering=0) as file:
        file.seek(_begin(path, member))
        while left and (n := file.readinto(buffer[: min(left, CHUNK)])):
            crc, left = zlib.crc32(buffer[:n], crc), left - n
    return crc


def _arrays(archive: zipfile.ZipFile) -> Iterator[Array]:
    """Yield descriptions of the archive's arrays; their sizes must match their shapes."""
    names = set()
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in names:
            raise ValueError(f"it must hold arrays, each once, got {member.filename!r:.80}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r:.80} is compressed in a way that numpy does not use")
        with archive.open(member) as stream:
            shape, fortran, dtype = _header(stream)
            header = stream.tell()
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size != member.file_size - header:
            raise ValueError(f"{name!r:.80} of {dtype}{list(shape)} would have {size:,} bytes, and not those it has")
        names.add(name)
        yield Array(name, member, shape, dtype, fortran, header)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    # Later versions allow longer headers, for dtypes with many fields; their length could exceed memory.
    if version != (1, 0):
        raise ValueError(f"version {version} of numpy's format is not read")
    return np.lib.format.read_array_header_1_0(stream)


def _read(archive: zipfile.ZipFile, array: Array) -> np.ndarray:
    try:
        with archive.open(array.member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(f"the bytes of {array.name!r} are not those that were written: {error}") from error


@contextlib.contextmanager
def _readable(path: str | Path, form: str = ".npz") -> Iterator[None]:
    """Name the file in the error of a failed read."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a position before the beginning of a file
            raise
        raise ValueError(f"cannot read {path} as an {form} file: {error}") from error
    except Damaged as error:
        raise Damaged(f"cannot read {path} as an {form} file: {error}") from error
    # A damaged archive or header can fail anywhere in its reader.
    except Exception as error:
        raise ValueError(f"cannot read {path} as an {form} file: {error!s:.500}") from error


def _begin(path: Path, member: zipfile.ZipInfo) -> int:
    """Offset of a member's bytes: after a header of 30 bytes and two fields; the header ends with their lengths."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return member.header_offset + 30 + int(lengths.sum())
