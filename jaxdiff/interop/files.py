"""The files of a Hugging Face directory: config.json, and tensors in safetensors files, read when asked for."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.messages import listed

__all__ = ["Tensor", "find_weights", "open_tensors", "read_config", "read_json"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LIMIT = 100 * 2**20  # bytes of a header, the limit of the format's own library
MAPPED = 2**28  # bytes that are read through one opening of a file


class _File:
    """A safetensors file, opened anew now and then.

    The format's library maps it into memory, and what has been read of a mapping is the process's memory until it is
    closed: without this a host would hold all that it has passed on to its devices.
    """

    def __init__(self, path: Path):
        self._path = path
        self._open()

    def _open(self) -> None:
        from safetensors import safe_open

        self._file, self._read = safe_open(self._path, "numpy"), 0

    def slices(self, name: str) -> Any:
        return self._file.get_slice(name)

    def read(self, name: str, index: Any) -> np.ndarray:
        if self._read >= MAPPED:
            self._open()
        value = self._file.get_slice(name)[index]
        self._read += value.nbytes
        return value


class Tensor:
    """A tensor that lies in a file until a part of it is read.

    Attributes:
        shape: its shape.
        dtype: as the file names it: "F32", "F16", "BF16", ...
    """

    def __init__(self, file: _File, name: str):
        self._file, self._name = file, name
        seen = file.slices(name)
        self.shape = tuple(seen.get_shape())
        self.dtype = seen.get_dtype()

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part, [slices of each axis]; () reads all."""
        return self._file.read(self._name, (index or (slice(None),) * len(self.shape)) if self.shape else ...)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, `-Infinity` and the like included.

    Raises:
        ValueError: there is no such file, or it holds no object.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got a {type(value).__name__}")
    return value


def read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """Reads a model's config.json.

    Returns:
        (the class's name, the fields).

    Raises:
        ValueError: there is none, or it names no class.
    """
    config = read_json(directory / "config.json")
    kinds = [config["_class_name"]] if "_class_name" in config else config.get("architectures") or []
    if not isinstance(kinds, list) or len(kinds) != 1 or not isinstance(kinds[0], str):
        raise ValueError(
            f"{directory / 'config.json'} must name one class in _class_name or architectures, got {kinds}"
        )
    return kinds[0], config


def open_tensors(path: str | Path, own: str | None = None, variant: str | None = None) -> dict[str, Tensor]:
    """Opens the tensors of a file, of the files that an index names, or of the one that is meant in a directory.

    Args:
        path: a directory, see `find_weights`, a `.safetensors` file, or an index, `.safetensors.index.json` or one of a
            variant, `.safetensors.index.fp16.json`.
        own: name of the class's own weights in a directory, without `.safetensors`.
        variant: "fp16" or another, of a directory.

    Returns:
        The tensors by name; nothing has been read of them.

    Raises:
        ValueError: there are none, or several and none is meant, a file is malformed or truncated, a tensor is in two
            files, the index names what the files don't hold or a file outside of the directory, or the weights are
            pickled.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path, own, variant)
    found: dict[str, Tensor] = {}
    for file in _files(path):
        for name, tensor in _open(file).items():
            if name in found:
                raise ValueError(f"{file}: the tensor {name!r} is in another file, too")
            found[name] = tensor
    return found


def find_weights(directory: Path, own: str | None = None, variant: str | None = None) -> Path:
    """The weights that are meant in a directory: a file, or the index of several.

    They are, in this order: what has the class's own name; what has that name with a variant, of which there may be
    one; the only file or index that there is. With a variant asked for, the own name with that variant.

    Args:
        directory: where to look.
        own: the class's own name, without `.safetensors`; None: there is none.
        variant: "fp16" or another.

    Returns:
        A `.safetensors` file or an index; of both, under one name, the file.

    Raises:
        ValueError: there are none, or several that may be meant; the message lists them.
    """
    held = dict(_weights(directory))
    if not held:
        _refuse_pickles(directory)
        raise ValueError(f"{directory} holds no whole .safetensors file and no index of parts")
    variants = [name for name in held if own is not None and name.startswith(f"{own}.")]
    asked = [f"{own}.{variant}"] if variant else [own] if own in held else variants or list(held)
    found = [held[name] for name in asked if name in held]
    if len(found) != 1:
        fault = f"no {asked[0]}.safetensors" if variant else "several weights"
        fault += f", but no {own}.safetensors" if own and not variant else ""
        remedy = "the path of one" + (" or its variant" if variants else "")
        raise ValueError(f"{directory} holds {fault}: {listed(path.name for path in held.values())}; give {remedy}")
    return found[0]


def _weights(directory: Path) -> Iterator[tuple[str, Path]]:
    """The whole files and the indices of a directory, by name and variant, "model.fp16"; files after indices."""
    for path in sorted(directory.glob("[!.]*.safetensors.index*.json")):
        if match := re.fullmatch(r"(.+)\.safetensors\.index(\..+)?\.json", path.name):
            yield match[1] + (match[2] or ""), path
    for path in sorted(directory.glob("[!.]*.safetensors")):
        if "-of-" not in path.name:
            yield path.stem, path


def _files(path: Path) -> list[Path]:
    if path.suffix in PICKLES:
        _refuse_pickles(path)
    if path.suffix == ".json":
        return _from_index(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return [path]


def _from_index(path: Path) -> list[Path]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, Mapping) or not names:
        raise ValueError(f"{path} must hold a weight_map from tensors to files")
    root = path.parent.resolve()
    files = []
    odd = [name for name in names.values() if not isinstance(name, str)]
    for name in odd or sorted(set(names.values())):
        # A link inside of the directory may lead out of it (the hub's cache consists of such); a name may not.
        if odd or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path} names {name!r}, which is no .safetensors file in {root}")
        if not (path.parent / name).is_file():
            raise ValueError(f"{path} names {name!r}, which is missing")
        files.append(path.parent / name)
    held = set().union(*(_header(file) for file in files))
    if held != set(names):
        odd = sorted(held ^ set(names))
        raise ValueError(f"{path} and the files that it names differ in {len(odd)} tensors: {listed(odd)}")
    return files


def _refuse_pickles(path: Path) -> None:
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES) if path.is_dir() else [path.name]
    if pickles:
        raise ValueError(
            f"{path}: {listed(pickles)} is pickled, and reading a pickle runs whatever program it contains. Where "
            'you trust it, convert it with PyTorch: `state = torch.load(FILE, map_location="cpu", weights_only=True); '
            "safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, OUT)`"
        )


def _open(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    names = _header(path)
    try:
        file = _File(path)
        return {name: Tensor(file, name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is malformed or truncated: {error}") from None


def _header(path: Path) -> set[str]:
    """The names in a safetensors file; the format's library takes the last of several equal ones in silence."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        if twice:
            raise ValueError(f"{path} names twice: {listed(twice)}")
        return dict(pairs)

    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > LIMIT or len(text := file.read(length)) < length:
            raise ValueError(f"{path} is malformed or truncated: its header is not whole")
    try:
        header = json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is malformed: its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is malformed: its header is no object")
    return header.keys() - {"__metadata__"}
