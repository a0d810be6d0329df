"""`jaxdiff verify RUN`: every file of a run against what was written, without a device."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import tyro

from jaxdiff.faults import Damaged
from jaxdiff.messages import listed
from jaxdiff.script import SOURCE
from jaxdiff.train.checkpoint import FOLDER, manifest, steps
from jaxdiff.train.knobs import KNOBS, read_knobs
from jaxdiff.train.log import METRICS, parsed
from jaxdiff.train.snapshots import FOLDER as SNAPSHOTS

GOOD, DAMAGED, ASIDE, IGNORED = "good", "DAMAGED", "set aside", "ignored"


class Finding(NamedTuple):
    """What was looked at, how it is, and why or how much that is."""

    name: str
    how: str
    why: str


def command(run: tyro.conf.Positional[Path]) -> None:
    """Check every file of a run: its checkpoints and snapshots byte for byte against the hashes that were saved with
    them, its knobs, its experiment and its log. Nothing is changed, and no device is used.

    The status is 4 if anything is damaged, else 0.

    Args:
        run: the run's folder.
    """
    if not any((run / name).exists() for name in (KNOBS, FOLDER)):
        raise ValueError(f"{run} is not a run: it has neither {KNOBS} nor a folder {FOLDER!r}")
    findings = []
    for finding in examine(run):
        print(f"{finding.name:<28} {finding.how:<9} {finding.why}", flush=True)
        findings.append(finding)
    damaged = [finding.name for finding in findings if finding.how == DAMAGED]
    good = [finding.name for finding in findings if finding.how == GOOD and finding.name.startswith(f"{FOLDER}/")]
    next_start = f"training continues from {good[-1]}" if good else "there is no checkpoint to continue from"
    if damaged or (not good and any(finding.how == ASIDE for finding in findings)):
        raise Damaged(f"{listed(damaged, max_names=5) or 'all that was saved'} cannot be used; {next_start}")
    print(f"all is good; {next_start}")


def examine(run: Path) -> Iterator[Finding]:
    """Look at what a run consists of, steps in increasing order.

    Args:
        run: its folder.
    """
    for name, check in ((KNOBS, _knobs), (SOURCE, _program), (METRICS, _log)):
        if (run / name).is_file():
            yield _finding(name, lambda check=check, name=name: check(run / name))  # type: ignore[misc]
    if (run / KNOBS).is_file() != (run / SOURCE).is_file():
        yield Finding(KNOBS if (run / SOURCE).is_file() else SOURCE, DAMAGED, "is missing")
    for folder in (FOLDER, SNAPSHOTS):
        for number in steps.numbered(run / folder):
            place = run / folder / str(number)
            before = steps.identity(place)
            finding = _finding(f"{folder}/{number}", lambda place=place: _step(place))  # type: ignore[misc]
            if steps.identity(place) != before:
                finding = Finding(finding.name, IGNORED, "a trainer has deleted it meanwhile")
            yield finding
        for name in steps.set_aside(run / folder):
            yield Finding(f"{folder}/{name}", ASIDE, "it was damaged when training wanted to go on from it")
        for name, why in {**steps.ignored(run / folder), **steps.unfinished(run / folder)}.items():
            yield Finding(f"{folder}/{name}", IGNORED, why)


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, GOOD, check())
    except (Damaged, OSError) as error:
        return Finding(name, DAMAGED, str(error))


def _step(place: Path) -> str:
    expected = manifest.read(place)
    problems = manifest.problems(place, expected.files, sorted({*expected.files, *manifest.files_of(place)}))
    if problems:
        raise Damaged(listed(problems, max_names=3))
    size = sum(file.size for file in expected.files.values())
    return f"{len(expected.files)} files, {len(expected.arrays)} arrays, {size / 1e6:,.1f} MB"


def _knobs(path: Path) -> str:
    return f"{len(read_knobs(path.parent))} knobs"


def _program(path: Path) -> str:
    try:
        ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # a zero byte, or nested too deeply
        raise Damaged(f"is no Python program: {error}") from None
    return f"{path.stat().st_size:,} bytes"


def _log(path: Path) -> str:
    bad, count, complete = [], 0, True
    with path.open("rb") as file:
        for count, line in enumerate(file, 1):
            complete = line.endswith(b"\n")
            if complete and parsed(line) is None:
                bad.append(count)
    if bad:
        raise Damaged(
            f"{'line' if len(bad) == 1 else 'lines'} {listed(map(str, bad), max_names=5)} of {count}: no step"
        )
    return f"{count:,} lines" + ("" if complete else ", the last one unfinished: training drops it")
