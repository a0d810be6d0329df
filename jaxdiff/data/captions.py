"""Captions of images: where they are read from, and which of several is drawn."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

METADATA = "metadata.jsonl"


def check_captions(captions: Sequence[Sequence[str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Strip captions, leave out empty ones, and require one for each image.

    Args:
        captions: of each image.
        names: of the images, for the message.

    Returns:
        the captions of each image, at least one.

    Raises:
        ValueError: an image has no caption, or there are more or fewer captions than images.
    """
    if len(captions) != len(names):
        raise ValueError(f"{len(names)} images need as many tuples of captions, got {len(captions)}")
    out = [tuple(filter(None, (text.strip() for text in texts))) for texts in captions]
    for name, texts in zip(names, out, strict=True):
        if not texts:
            raise ValueError(f"{name} has no caption")
    return out


def of_files(folder: Path, files: Sequence[str], key: str = "text") -> list[tuple[str, ...]]:
    """Read the captions of a folder's images.

    They are in metadata.jsonl in the folder, if there is such a file: in each line an object with "file_name", the
    image's path from the folder, and `key`, its caption or a list of them; an image may have several lines, and lines
    of other files are ignored. Otherwise each image has a text file, e.g. cat.txt for cat.png, each line of which is a
    caption. Empty captions are ignored.

    Args:
        folder: the folder.
        files: paths of its images.
        key: of captions in metadata.jsonl.

    Returns:
        the captions of each image, at least one.

    Raises:
        ValueError: an image has no caption, or a file cannot be read.
    """
    metadata = folder / METADATA
    if metadata.is_file():
        known: dict[str, list[str]] = {}
        for number, line in enumerate(_lines(metadata), 1):
            if line.strip():
                name, texts = _entry(line, key, f"{metadata}, line {number}")
                known.setdefault(os.path.normpath(name), []).extend(texts)
        captions = [known.get(os.path.relpath(file, folder), []) for file in files]
        return check_captions(captions, [f"{file} in {metadata}" for file in files])
    paths = [Path(file).with_suffix(".txt") for file in files]
    if not any(path.is_file() for path in paths):
        raise ValueError(f"no captions in {folder}: looked for {METADATA}, and for {paths[0].name} next to {files[0]}")
    captions = [_lines(path) if path.is_file() else [] for path in paths]
    return check_captions(captions, files)


def draw_captions(captions: Sequence[Sequence[str]], words: np.ndarray) -> list[str]:
    """Choose one of each image's captions.

    Args:
        captions: of each of B images.
        words: uint64 [B], random.

    Returns:
        B captions.

    Raises:
        ValueError: an image has no captions.
    """
    if not all(captions):
        raise ValueError("there is nothing to encode: the source has no captions; open it with captions=True")
    counts = np.array([len(texts) for texts in captions], np.uint64)
    chosen = (words >> np.uint64(32)) * counts >> np.uint64(32)  # uniform in 0..count - 1
    return [texts[i] for texts, i in zip(captions, chosen.tolist(), strict=True)]


def captions_of(source: Any) -> list[str]:
    """All captions of a source, or texts with the same words, e.g. to make a vocabulary of.

    Args:
        source: from `open_dataset(..., captions=True)`.

    Raises:
        ValueError: it reads its captions with its images, or has none.
    """
    found = [text for texts in getattr(source, "captions", None) or () for text in texts]
    if not found:
        raise ValueError(
            "the captions of this data are not known beforehand: use a folder or an embedded set, with captions=True"
        )
    return found


def preview_captions(source: Any, count: int = 20) -> tuple[list[str], list[str]]:
    """Captions to draw pictures of while a model is trained: some of training, and some that are held out of it.

    Args:
        source: from `open_dataset(..., captions=True)`.
        count: of captions of a source that holds none out, spread evenly; of one that reads them with its images, they
            are the first ones of so many examples.

    Returns:
        (of training, held out).

    Raises:
        ValueError: it has no captions, or an example cannot be read.
    """
    previews = getattr(source, "previews", None)
    if previews is not None:
        shown, held_out = ([each.caption for each in previews if each.held_out == held] for held in (False, True))
        return shown, held_out
    if getattr(source, "reads_captions", False):
        return [source[i]["captions"][0] for i in range(0, len(source), -(-len(source) // count))], []
    captions = captions_of(source)
    return captions[:: -(-len(captions) // count)], []


def _entry(line: str, key: str, where: str) -> tuple[str, list[str]]:
    """The file and the captions of a line of metadata.jsonl."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError(f'{where} must be an object with "file_name", got {line:.80}')
    texts = entry.get(key, [])
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {key!r} must be a string or a list of strings, got {texts!r:.80}")
    return entry["file_name"], texts


def _lines(path: Path) -> list[str]:
    try:  # splitlines would split at U+2028 and others, which JSON and captions may hold
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the captions in {path}: {error}") from error
