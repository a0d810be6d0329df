"""Tensors of PyTorch's file format before 1.6, read with numpy and without running the pickled program."""

from __future__ import annotations

import math
import mmap
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
MOST = 300_000  # opcodes of a pickle; enough for some thousand tensors


class _View(NamedTuple):
    """A tensor as described in the file: a strided part of a storage, which follows later in the file."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Storage(NamedTuple):
    key: str
    dtype: str


class _Name(NamedTuple):
    """A name that a pickle would import."""

    module: str
    name: str


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict, a flat dictionary from names to tensors, that `torch.save` wrote before PyTorch 1.6.

    No code of the file is run: only plain values, dictionaries and tensors are supported.

    Args:
        path: the file.

    Returns:
        the tensors by name.

    Raises:
        ValueError: the file does not exist, has another format, is malformed, or contains anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path} is of the format that PyTorch writes since 1.6; only the older one is read")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as file_map:
                return _read(file_map)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise ValueError(f"{path} is no state dict in PyTorch's old format, or malformed: {error}") from None


def _read(file_map: mmap.mmap) -> dict[str, np.ndarray]:
    for expected in (MAGIC, PROTOCOL):
        if type(got := _plain(file_map)) is not int or got != expected:
            raise ValueError(f"it does not begin with {expected}")
    system = _plain(file_map)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    views = _plain(file_map)
    if not isinstance(views, dict) or not all(isinstance(v, _View) for v in views.values()):
        raise ValueError("it holds something else than names and tensors")
    dtypes: dict[str, str] = {}
    for storage in (view.storage for view in views.values()):
        if dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise ValueError(f"the storage {storage.key!r:.80} is of two types")
    storages = {}
    for key in _plain(file_map):
        dtype = np.dtype(dtypes[key])
        number, begin = int.from_bytes(file_map.read(8), "little", signed=True), file_map.tell()
        if not 0 <= number * dtype.itemsize <= len(file_map) - begin:
            raise ValueError(f"the storage {key!r:.80} of {number} numbers is longer than the file")
        file_map.seek(begin + number * dtype.itemsize)
        storages[key] = begin, number
    total = sum(math.prod(view.size) * np.dtype(view.storage.dtype).itemsize for view in views.values())
    if total > 2 * len(file_map):
        raise ValueError(f"its tensors would have {total:,} bytes, and it has {len(file_map):,}")
    return {name: _tensor(file_map, view, *storages[view.storage.key]) for name, view in views.items()}


def _tensor(file_map: mmap.mmap, view: _View, begin: int, number: int) -> np.ndarray:
    last = view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True))
    if min((view.offset, *view.size, *view.stride)) < 0 or (0 not in view.size and last >= number):
        raise ValueError(f"a tensor reaches outside of its storage of {number} numbers: {view}")
    if math.prod(view.size) > number:
        raise ValueError(f"a tensor has more elements than its storage of {number} numbers: {view}")
    dtype = np.dtype(view.storage.dtype)
    if 0 in view.size:
        return np.zeros(view.size, dtype)
    # A copy, since the memory map is closed later, and its data may be unaligned.
    storage = np.frombuffer(file_map[begin : begin + number * dtype.itemsize], dtype)
    strides = [s * dtype.itemsize for s in view.stride]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.size, strides).copy()


def _plain(file_map: mmap.mmap) -> Any:
    """Return the value of the pickle at this position, for the few opcodes of state dicts, without imports."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    file: Any = file_map  # genops accepts anything with read methods
    for number, (step, value, _) in enumerate(pickletools.genops(file)):
        name = step.name
        if number > MOST:
            raise ValueError(f"its description has more than {MOST:,} steps")
        if name in VALUES:
            stack.append(VALUES[name](value))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in SINCE_MARK:
            begin = marks.pop()
            SINCE_MARK[name](stack, [stack.pop() for _ in range(len(stack) - begin)][::-1])
        elif name in TAKE:
            take, make = TAKE[name]
            stack.append(make(*[stack.pop() for _ in range(take)][::-1]))
        elif name == "STOP":
            break
        elif name != "PROTO":
            raise ValueError(f"it asks for {name}, which no state dict needs")
    return stack.pop()


def _global(value: str) -> _Name:
    module, _, name = value.partition(" ")
    known = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
    if (module, name) not in known and not (module == "torch" and name in STORAGES):
        raise ValueError(f"it asks for {module}.{name}"[:200])
    return _Name(module, name)


def _called(what: Any, args: Any) -> Any:
    if what == ("collections", "OrderedDict") and args in ((), []):
        return {}
    if what == ("torch._utils", "_rebuild_tensor_v2") and isinstance(args, tuple) and len(args) >= 4:
        storage, offset, size, stride = args[:4]
        numbers = (offset, *size, *stride)
        if isinstance(storage, _Storage) and all(type(n) is int for n in numbers) and len(numbers) < 100:
            return _View(storage, offset, tuple(size), tuple(stride))
    raise ValueError("a tensor is not described by a storage, an offset, sizes and strides")


def _storage(pid: Any) -> _Storage:
    kind, named, key, _location, _numel, part = pid
    if kind != "storage" or type(named) is not _Name or named.name not in STORAGES or part is not None:
        raise ValueError("it asks for what is no plain storage")
    return _Storage(_key(key), STORAGES[named.name])


def _key(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a name must be a string, got a {type(value).__name__}")
    return value


def _set(mapping: Any, pairs: list[Any]) -> Any:
    if type(mapping) is not dict or len(pairs) % 2:
        raise ValueError("it puts names into what is no dictionary")
    mapping |= {_key(key): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
    return mapping


def _appended(items: Any, values: list[Any]) -> Any:
    if type(items) is not list:
        raise ValueError("it appends to what is no list")
    items.extend(values)
    return items


# Opcodes that push a value, that pop everything since the last mark, and that pop some values and push one.
VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        lambda value: value,
    ),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "GLOBAL": _global,
}
SINCE_MARK: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    "TUPLE": lambda stack, taken: stack.append(tuple(taken)),
    "LIST": lambda stack, taken: stack.append(taken),
    "DICT": lambda stack, taken: stack.append(_set({}, taken)),
    "SETITEMS": lambda stack, taken: _set(stack[-1], taken),
    "APPENDS": lambda stack, taken: _appended(stack[-1], taken),
}
TAKE: dict[str, tuple[int, Callable[..., Any]]] = {
    "TUPLE1": (1, lambda *values: values),
    "TUPLE2": (2, lambda *values: values),
    "TUPLE3": (3, lambda *values: values),
    "SETITEM": (3, lambda mapping, key, value: _set(mapping, [key, value])),
    "APPEND": (2, lambda items, value: _appended(items, [value])),
    "REDUCE": (2, _called),
    "BUILD": (2, lambda value, _state: value),  # attributes of a state dict: its versions
    "BINPERSID": (1, _storage),
}
