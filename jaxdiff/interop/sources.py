"""Locations of models: a directory, a file in it, or a part of a single-file checkpoint.

The path of a part treats the file as a directory: "sdxl.safetensors/vae". So a single file may replace a pipeline's
directory everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.interop.formats.files import PICKLES, open_tensors, read_config
from jaxdiff.interop.models.single_file import Single, read_single
from jaxdiff.messages import listed

__all__ = ["find_part", "is_file", "open_single", "pipeline_of", "read_fields", "read_model"]

Config = dict[str, Any]


def read_model(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[Config, dict[str, Any] | None]:
    """Read a model's config, and open its tensors if the path names their file.

    Args:
        path: a directory with config.json; a file or an index in such a directory; a single-file checkpoint of one
            model; or FILE/PART of several.
        overrides: fields of the config that do not follow from a file, or that replace those of the file.

    Returns:
        (fields, the class in `_class_name`; the tensors by name, or None for a directory).

    Raises:
        ValueError: there is no config, the file contains several models and the path names none, or not the named one.
    """
    overrides = dict(overrides or {})
    file, part = _split(Path(path))
    if part is None and not is_file(file):
        return _class_and_fields(file) | overrides, None
    tensors = open_tensors(file)
    single = read_single(tensors)
    near = _class_and_fields(file.parent) if (file.parent / "config.json").is_file() else None
    if single is None:
        if part is not None or near is None:
            raise ValueError(
                f"{file} has no config.json next to it, and is no checkpoint of Stable Diffusion or Flux in one file"
                if part is None
                else f"{file} is no checkpoint of Stable Diffusion or Flux in one file: it has no part {part!r}"
            )
        return near | overrides, tensors
    name = part if part is not None or len(single.parts) > 1 else next(iter(single.parts))
    if name not in single.parts:
        raise ValueError(
            f"{file} holds {listed(single.parts)}: name one of them, as in {file / next(iter(single.parts))}"
        )
    # A config of this class next to the file adds fields that do not follow from the tensors.
    kind, read = single.parts[name]
    if len(single.parts) == 1 and near is not None and near["_class_name"] == kind:
        overrides = near | overrides
    try:
        return read(overrides)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_fields(path: str | Path) -> Config:
    """Return the fields of a model's config, with its class in `_class_name`; see `read_model`."""
    return read_model(path)[0]


def open_single(path: Path) -> Single | None:
    """Open a single-file checkpoint; return None for a directory.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    if not is_file(path):
        return None
    single = read_single(open_tensors(path))
    if single is None:
        raise ValueError(f"{path} is no checkpoint of Stable Diffusion or Flux in one file")
    return single


def find_part(path: str | Path, *names: str) -> Path:
    """Return the path of the first of these models in a pipeline, a directory or file; else the path itself."""
    path = Path(path)
    if is_file(path):
        single = read_single(open_tensors(path))
        parts = [name for name in names if single is not None and name in single.parts]
    else:
        parts = [name for name in names if (path / name / "config.json").is_file()]
    return path / parts[0] if parts else path


def pipeline_of(path: str | Path) -> Path:
    """Return the directory or file of the pipeline that contains a model."""
    file, part = _split(Path(path))
    if part is not None or (is_file(file) and read_single(open_tensors(file)) is not None):
        return file
    return file.parent.parent if is_file(file) else file.parent


def _split(path: Path) -> tuple[Path, str | None]:
    return (path.parent, path.name) if is_file(path.parent) else (path, None)


def is_file(path: Path) -> bool:
    """Return whether a path names a file of weights, which may be missing."""
    return path.suffix in (".safetensors", ".json", *PICKLES) and not path.is_dir()


def _class_and_fields(directory: Path) -> Config:
    kind, config = read_config(directory)
    return config | {"_class_name": kind}
