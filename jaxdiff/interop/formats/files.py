"""The files of a Hugging Face directory: config.json, and tensors in safetensors files, which are read lazily."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.messages import listed
from jaxdiff.storage import parse_json, read_json

__all__ = ["Tensor", "find_weights", "open_metadata", "open_tensors", "read_config", "write_tensors"]

METADATA = "__metadata__"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LIMIT = 32 * 2**20  # bytes of a header; published models of 70,000 tensors have a third of that
MAPPED = 2**28  # bytes to read before a file is reopened


class _File:
    """A safetensors file that is reopened after every `MAPPED` bytes.

    The format's library maps the file into memory, and pages that were read count as the process's memory until the
    mapping is closed. Without reopening, the host would store everything that it copied to the devices.
    """

    def __init__(self, path: Path):
        self._path = path
        self._open()

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file, self._read = safe_open(self._path, "numpy"), 0
        except SafetensorError as error:
            raise ValueError(f"{self._path} is malformed or truncated: {error}") from None

    def read(self, name: str, index: Any) -> np.ndarray:
        from safetensors import SafetensorError

        if self._read >= MAPPED:
            self._open()
        try:
            value = self._file.get_slice(name)[index]
        except (SafetensorError, TypeError, AttributeError) as error:  # numpy lacks some of the format's types
            raise ValueError(f"{self._path}: {name!r:.300} can't be read: {error}") from None
        self._read += value.nbytes
        return value


class Tensor:
    """A tensor in a file, whose parts are read on demand.

    Attributes:
        shape: its shape.
        dtype: its dtype as in the file: "F32", "F16", "BF16", ...
    """

    def __init__(self, file: _File, name: str, entry: Mapping[str, Any]):
        self._file, self._name = file, name
        self.shape = tuple(entry["shape"])
        self.dtype = entry["dtype"]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part, given by a slice of each axis; () reads the tensor."""
        if 0 in self.shape:  # for which the format's library has no slices
            return np.zeros(self.shape, np.float32)[index]
        return self._file.read(self._name, (index or (slice(None),) * len(self.shape)) if self.shape else ...)


def read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """Read a model's config.json.

    Returns:
        (the class's name, the fields).

    Raises:
        ValueError: the file is missing, or it names no class.
    """
    config = read_json(directory / "config.json")
    kinds = [config["_class_name"]] if "_class_name" in config else config.get("architectures") or []
    if not isinstance(kinds, list) or len(kinds) != 1 or not isinstance(kinds[0], str):
        raise ValueError(
            f"{directory / 'config.json'} must name one class in _class_name or architectures, got {kinds}"
        )
    return kinds[0], config


def open_tensors(path: str | Path, class_weights: str | None = None, variant: str | None = None) -> dict[str, Tensor]:
    """Open the tensors of a file, of the files in an index, or of a directory.

    Args:
        path: a directory, see `find_weights`, a `.safetensors` file, or an index, `.safetensors.index.json` or one of a
            variant, `.safetensors.index.fp16.json`.
        class_weights: name of the class's own weights in a directory, without `.safetensors`.
        variant: variant of the weights in a directory, e.g. "fp16".

    Returns:
        the tensors by name, not read yet.

    Raises:
        ValueError: there are no weights, or several that match; a file is malformed or truncated; a tensor is in two
            files; the index names a tensor that is in no file, or a file outside of the directory; or the weights
            are pickled.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path, class_weights, variant)
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        for name, tensor in _open(file).items():
            if name in tensors:
                raise ValueError(f"{file}: the tensor {name!r} is in another file, too")
            tensors[name] = tensor
    return tensors


def find_weights(directory: Path, class_weights: str | None = None, variant: str | None = None) -> Path:
    """Find the weights in a directory: a file, or the index of several files.

    Without a variant, the order of precedence is: the class's own name; that name with the only variant; the only file
    or index. With a variant: the class's own name with that variant.

    Args:
        directory: where to look.
        class_weights: the class's own name, without `.safetensors`; None: there is none.
        variant: variant of the weights, e.g. "fp16".

    Returns:
        a `.safetensors` file or an index; the file if both have the same name.

    Raises:
        ValueError: there are none, or several that match; the message lists them.
    """
    files = dict(_weights(directory))
    if not files:
        _refuse_pickles(directory)
        raise ValueError(f"{directory} holds no whole .safetensors file and no index of parts")
    variants = [name for name in files if class_weights is not None and name.startswith(f"{class_weights}.")]
    if variant:
        asked = [f"{class_weights}.{variant}"]
    else:
        asked = [class_weights] if class_weights in files else variants or list(files)
    matches = [files[name] for name in asked if name in files]
    if len(matches) != 1:
        fault = f"no {asked[0]}.safetensors" if variant else "several weights"
        fault += f", but no {class_weights}.safetensors" if class_weights and not variant else ""
        remedy = "the path of one" + (" or its variant" if variants else "")
        remedy += f", or name one {class_weights}.safetensors" if class_weights else ""  # in a pipeline's folder
        raise ValueError(f"{directory} holds {fault}: {listed(path.name for path in files.values())}; give {remedy}")
    return matches[0]


def _weights(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield indices, then unsplit files, of a directory by name and variant, e.g. "model.fp16"."""
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
    root, entries = path.parent.resolve(), {entry.name for entry in path.parent.iterdir()}
    files = []
    odd = [name for name in names.values() if not isinstance(name, str)]
    for name in odd or sorted(set(names.values())):
        # Links in the directory may point out of it, as in the hub's cache; names may not.
        if odd or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path} names {name!r:.300}, which is no .safetensors file in {root}")
        if name not in entries or not (path.parent / name).is_file():
            raise ValueError(f"{path} names {name!r:.300}, which is missing")
        files.append(path.parent / name)
    names_in_files = set().union(*(_header(file) for file in files)) - {METADATA}
    if names_in_files != set(names):
        odd = sorted(names_in_files ^ set(names))
        raise ValueError(f"{path} and the files that it names differ in {len(odd)} tensors: {listed(odd)}")
    return files


def _refuse_pickles(path: Path) -> None:
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES) if path.is_dir() else [path.name]
    if pickles:
        raise ValueError(
            f"{path}: {listed(pickles)} is pickled, and reading a pickle runs whatever program it contains. Where "
            'you trust it, convert it with PyTorch: `state = torch.load(FILE, map_location="cpu", weights_only=True); '
            "safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, OUT)`; an IP-Adapter's, which "
            'has two parts, by `{f"{p}.{k}": v.contiguous() for p in state for k, v in state[p].items()}`'
        )


def _open(path: Path) -> dict[str, Tensor]:
    header = _header(path)
    file = _File(path)  # raises for entries that are incomplete, overlap, or exceed the file
    return {name: Tensor(file, name, entry) for name, entry in header.items() if name != METADATA}


def open_metadata(path: Path) -> Mapping[str, str]:
    """Return the metadata of a safetensors file: strings by name."""
    _open(path)
    return _header(path).get(METADATA) or {}


def _header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file; duplicate names, which the library accepts, are errors."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"{path} names twice: {listed(twice)}")
        return entries

    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > LIMIT or len(text := file.read(length)) < length:
            raise ValueError(f"{path} is malformed or truncated: its header is not whole")
    return parse_json(text, f"{path} is malformed: its header", once, deep=True)  # the format's library checks it


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file that PyTorch programs can load.

    Args:
        tensors: by name.
        path: the file.

    Raises:
        OSError: e.g. the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, {"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # the library's only trace of a system error
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
