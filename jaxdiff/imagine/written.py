"""A history as a file: JSON whose every field is checked, written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jaxdiff.imagine.hint_file import SCALE, Hint
from jaxdiff.imagine.history import LARGEST, MOST, History, Picture, check_picture
from jaxdiff.schema import GUIDANCE, Kind, choice, each, number, optional, whole_number
from jaxdiff.storage import read_json, write_text

__all__ = ["VERSION", "read_history", "write_history"]

VERSION = 2
_FINGERPRINT = Kind(
    "32 hexadecimal digits", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{32}", v) is not None
)
MOST_CONTROLS = 100
_TEXT = Kind("a text", lambda v: isinstance(v, str))
_HISTORY = {
    "version": choice(VERSION),
    "weights": _FINGERPRINT,
    "steps": whole_number(1, 100_000),
    "guidance": GUIDANCE,
    "solver": optional(_TEXT),
    "size": optional(each(whole_number(1, 1_000_000), 2, 2)),
    "param_dtype": optional(choice("int8", "float8")),
    "controls": each(_TEXT, MOST_CONTROLS, 0),
    "pictures": Kind(f"a list of up to {MOST:,} pictures", lambda v: isinstance(v, list) and len(v) <= MOST),
}
_PICTURE = {
    "prompt": _TEXT,
    "seed": whole_number(0, 2**64 - 1),
    "guidance": GUIDANCE,
    "parent": optional(whole_number(1, MOST)),
    "strength": optional(number(0, 1)),
    "scale": whole_number(1, LARGEST),
    "x0": optional(_FINGERPRINT),
    "hints": Kind(f"a list of up to {MOST_CONTROLS} hints", lambda v: isinstance(v, list) and len(v) <= MOST_CONTROLS),
}
_HINT = {"picture": _TEXT, "scale": SCALE, "digest": _FINGERPRINT}


def write_history(path: str | Path, history: History) -> None:
    """Write a history to a file; the file that was there stays until the new one is complete.

    Args:
        path: the file.
        history: the history.
    """
    fields = {"version": VERSION, **history._asdict()}
    fields["pictures"] = [
        picture._asdict() | {"hints": [hint._asdict() for hint in picture.hints]} for picture in history.pictures
    ]
    write_text(path, json.dumps(fields, indent=1) + "\n")


def read_history(path: str | Path) -> History:
    """Read a history.

    Args:
        path: the file.

    Raises:
        ValueError: the file does not exist, is of another version, or something in it is not what a history has.
    """
    fields = _checked(read_json(path), _HISTORY, str(path))
    pictures: list[Picture] = []
    for n, each_picture in enumerate(fields["pictures"], 1):
        where = f"{path}: picture {n}"
        if not isinstance(each_picture, dict):
            raise ValueError(f"{where} must be an object, got {each_picture!r:.80}")
        kept = _checked(each_picture, _PICTURE, where)
        for hint in kept["hints"]:
            if not isinstance(hint, dict):
                raise ValueError(f"{where}: a hint must be an object, got {hint!r:.80}")
        kept["hints"] = tuple(Hint(**_checked(hint, _HINT, f"{where}: a hint")) for hint in kept["hints"])
        picture = Picture(**kept)
        _check_parent(picture, pictures, where)
        try:
            pictures.append(check_picture(picture, len(fields["controls"])))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    size = None if fields["size"] is None else tuple(fields["size"])
    return History(
        fields["weights"], fields["steps"], float(fields["guidance"]), fields["solver"], size, fields["param_dtype"],
        tuple(fields["controls"]), tuple(pictures),
    )  # fmt: skip


def _checked(fields: dict[str, Any], kinds: dict[str, Kind], where: str) -> dict[str, Any]:
    """The fields, which are all those of `kinds` and no other."""
    if "version" in kinds:
        kinds["version"].check(f"{where}: version", fields.get("version"))
    differing = sorted(fields.keys() ^ kinds.keys())
    if differing:
        what = "has no" if differing[0] in kinds else "has an unknown"
        raise ValueError(f"{where} {what} {differing[0]!r:.80}; its fields are {', '.join(kinds)}")
    return {name: kind.check(f"{where}: {name}", fields[name]) for name, kind in kinds.items()}


def _check_parent(picture: Picture, before: list[Picture], where: str) -> None:
    if picture.parent is None:
        if picture.strength is not None or picture.scale != 1:
            raise ValueError(f"{where} has no parent: its strength is null and its scale 1")
        return
    if picture.parent > len(before):
        raise ValueError(f"{where} must come after its parent, picture {picture.parent}")
    grown = picture.scale / before[picture.parent - 1].scale
    if grown not in (1, 2):
        raise ValueError(f"{where} must be as large as its parent or twice as large, got {grown:g} times")
