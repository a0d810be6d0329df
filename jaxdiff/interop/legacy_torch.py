"""Tensors of PyTorch's file format before 1.6, by numpy, without running the program that a pickle is."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

__all__ = ["read_legacy"]

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


class _View(NamedTuple):
    """A tensor as the file describes it: a strided part of a storage, which comes later in the file."""

    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows tensors and dictionaries; all else that a pickle can ask for is refused."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._view
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, key, _location, _numel, part = pid
        if kind != "storage" or dtype not in STORAGES.values() or not isinstance(key, str) or part is not None:
            raise pickle.UnpicklingError(f"it asks for {kind!r}, which is no plain storage")
        self.dtypes[key] = dtype
        return key

    def _view(self, storage: str, offset: int, size: tuple, stride: tuple, *_rest: Any) -> _View:
        return _View(storage, offset, tuple(size), tuple(stride))


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict, a flat dictionary from names to tensors, that `torch.save` wrote before PyTorch 1.6.

    Nothing of the file is run: its pickles may ask for dictionaries and tensors, and for nothing else.

    Args:
        path: the file.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file does not exist, is of another format or malformed, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path} is of the format that PyTorch writes since 1.6; only the older one is read")
        file.seek(0)
        try:
            return _read(file, path.stat().st_size)
        # A malformed pickle can fail anywhere in the machine that reads it.
        except Exception as error:
            raise ValueError(f"{path} is no state dict in PyTorch's old format, or malformed: {error}") from None


def _read(file: BinaryIO, length: int) -> dict[str, np.ndarray]:
    for wanted in (MAGIC, PROTOCOL):
        if (got := _Unpickler(file).load()) != wanted:
            raise ValueError(f"it begins with {got!r} where {wanted} should be")
    system = _Unpickler(file).load()
    if system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    unpickler = _Unpickler(file)
    views = unpickler.load()
    if not isinstance(views, dict) or not all(isinstance(v, _View) for v in views.values()):
        raise ValueError("it holds something else than names and tensors")
    storages = {}
    for key in _Unpickler(file).load():
        dtype = np.dtype(unpickler.dtypes[key])
        (number,) = struct.unpack("<q", file.read(8))
        if not 0 <= number * dtype.itemsize <= length - file.tell():
            raise ValueError(f"the storage {key!r} of {number} numbers is longer than the file")
        storages[key] = np.fromfile(file, dtype, number)
    return {str(name): _tensor(storages[view.storage], view) for name, view in views.items()}


def _tensor(storage: np.ndarray, view: _View) -> np.ndarray:
    last = view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True))
    if min((view.offset, *view.size, *view.stride)) < 0 or (0 not in view.size and last >= len(storage)):
        raise ValueError(f"a tensor reaches outside of its storage of {len(storage)} numbers: {view}")
    strides = [s * storage.itemsize for s in view.stride]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.size, strides).copy()
