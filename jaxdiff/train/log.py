"""Records of a run as lines of JSON; failures of the log never stop training."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from jaxdiff.storage import replacing

Record = dict[str, Any]

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


def jsonl_logger(path: str | os.PathLike[str], start: int = 0) -> Callable[[Record], None]:
    """Log each record as a line of JSON; only the first process writes.

    A file that cannot be read or written is reported once, on stderr, and training continues; writing resumes as soon
    as there is room. A number that is not finite becomes null.

    Args:
        path: the file; its folder is created if missing.
        start: step from which the run resumes. Later lines, of lost steps, are removed, and so are damaged ones, whose
            number is reported.

    Returns:
        a function to pass to `fit` as `log`.
    """
    if jax.process_index() != 0:
        return lambda record: None
    path = Path(path)
    file = LineFile(path)
    try:
        _forget(path, start)
    except OSError as error:
        file.warn(error)
    return file


class LineFile:
    """A log file with one line of JSON for each record; a failure is reported once and raises nothing."""

    def __init__(self, path: Path):
        """Describe the log; the first record opens the file.

        Args:
            path: the file; its folder is created if missing.
        """
        self._path = path
        self._handle: int | None = None
        self._torn, self._warned = False, False

    def __call__(self, record: Record) -> None:
        """Append a record."""
        line = json.dumps(_strict(record)) + "\n"
        data = ("\n" + line if self._torn else line).encode()  # half a line, on a full disk, damages no other line
        try:
            if self._handle is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            written = os.write(self._handle, data)
            self._torn = written < len(data) and (self._torn or written > 0)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
        except OSError as error:
            self.warn(error)

    def warn(self, error: OSError) -> None:
        """Report an error, the first time."""
        if not self._warned:
            self._warned = True
            print(f"jaxdiff: {self._path} lacks lines: {error}; training continues", file=sys.stderr, flush=True)

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


def read_lines(path: Path, tail: int | None = None) -> tuple[list[Record], int]:
    """Read records, each with an integer "step".

    Args:
        path: a file of lines of JSON; a missing file has no records.
        tail: number of bytes to read at the end; None: all.

    Returns:
        (the records, the number of damaged lines).

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            skipped = 0 if tail is None else max(0, path.stat().st_size - tail)
            file.seek(skipped)
            lines = file.read().splitlines()[bool(skipped) :]  # the first may be incomplete
    except FileNotFoundError:
        return [], 0
    records = [record for line in lines if (record := parsed(line)) is not None]
    return records, len(lines) - len(records)


def _forget(path: Path, start: int) -> None:
    records, damaged = read_lines(path)
    kept = {record["step"]: record for record in records if record["step"] <= start}  # the later of two of a step
    if len(kept) == len(records) and not damaged:
        return
    with replacing(path) as partial_path:
        partial_path.write_text(_text(kept.values()))
    if damaged:
        print(f"jaxdiff: {path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)


def _text(records: Iterable[Record]) -> str:
    return "".join(json.dumps(_strict(record)) + "\n" for record in records)


def parsed(line: bytes) -> Record | None:
    """Return the record in a line, or None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def _strict(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {name: _strict(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
