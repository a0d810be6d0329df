"""`jaxdiff status RUN`: how far a run is, how fast, and where its time goes. It reads, and changes nothing."""

from __future__ import annotations

import json as text
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxdiff.train import has_knobs
from jaxdiff.train.checkpoint import FOLDER
from jaxdiff.train.goodput import is_complete, summary
from jaxdiff.train.log import EVENTS, METRICS, Record, read_lines

# Steps that the rate and the mean loss are of, and bytes at the end of a file that hold as many lines.
LAST, TAIL = 100, 2**17


def command(run: tyro.conf.Positional[Path], json: bool = False) -> None:
    """Say how far a run is, how fast, and where its time goes, while it trains or afterwards.

    Args:
        run: the run's folder.
        json: the same numbers as a line of JSON.
    """
    if not has_knobs(run):
        raise ValueError(f"{run} holds no run: `jaxdiff train EXPERIMENT --workdir {run}` makes one")
    found = status(run)
    print(text.dumps(found) if json else f"{run}\n{_written(found)}")


def status(run: Path) -> dict[str, Any]:
    """Gather what a run's files tell; None is what they don't.

    Args:
        run: the run's folder.

    Returns:
        names and numbers: "step", "steps" (of the whole run), "skipped" (updates not made), "loss" (the last one),
        "mean_loss", "images_per_s" (of the last 100 steps), "steps_per_s", "seconds_left", "seconds_silent" (since the
        last line was written), "damaged_lines", "checkpoints" (their steps), "checkpoint_seconds" (age of the newest),
        "quarantined" (checkpoints set aside as damaged), "starts" (processes that trained), "goodput", "lost_steps",
        and "seconds" by what they were spent on.
    """
    metrics, damaged = read_lines(run / METRICS, TAIL)
    lines, bad = read_lines(run / EVENTS)
    events = [record for record in lines if is_complete(record)]
    bad += len(lines) - len(events)
    last = events[-1] if events else {}
    times, saved = summary(events), _checkpoints(run)
    recorded = [record["step"] for record in (*metrics[-1:], *events[-1:])]
    checkpoints = [int(path.name) for path in saved]  # of a run of the package there is nothing else
    step = max([*recorded, *checkpoints[-1:]], default=0)
    rate = _per_second(last)
    left = (last["steps"] - step) / rate if rate else None
    losses = _numbers(metrics, "loss")
    return {
        "step": step,
        "steps": last.get("steps"),
        "skipped": last.get("skipped"),
        "loss": losses[-1] if losses else None,
        "mean_loss": float(np.mean(losses)) if losses else None,
        "images_per_s": float(np.median(found)) if (found := _numbers(metrics, "images_per_s")) else None,
        "steps_per_s": rate,
        "seconds_left": left,
        "seconds_silent": _age([run / METRICS, run / EVENTS]),
        "damaged_lines": damaged + bad,
        "checkpoints": checkpoints,
        "checkpoint_seconds": _age(saved[-1:]),
        "quarantined": len(list((run / FOLDER).glob("quarantine-*"))),
        "starts": times.starts,
        "goodput": times.goodput if times.total else None,
        "lost_steps": times.lost_steps,
        "seconds": {"training": times.training, **times.losses},
    }


def _written(found: dict[str, Any]) -> str:
    """The numbers for a person."""
    step, steps, seconds = found["step"], found["steps"], found["seconds"]
    of = f" of {steps:,} ({step / steps:.0%})" if steps else ""
    silent = "" if found["seconds_silent"] is None else f", the last line {_long(found['seconds_silent'])} ago"
    lines = {"step": f"{step:,}{of}{silent}"}
    if found["loss"] is not None:
        lines["loss"] = f"{found['loss']:.4f}, mean of the last {LAST} steps {found['mean_loss']:.4f}"
    if found["images_per_s"] is not None:
        left = f", {_long(found['seconds_left'])} left" if found["seconds_left"] else ""
        speed = f"{found['steps_per_s']:.3g} steps/s with saves and previews, " if found["steps_per_s"] else ""
        lines["rate"] = f"{speed}{found['images_per_s']:,.0f} images/s in the last {LAST} steps{left}"
    newest = f", the newest {_long(found['checkpoint_seconds'])} old" if found["checkpoints"] else ""
    aside = f", {found['quarantined']} set aside as damaged" if found["quarantined"] else ""
    lines["checkpoints"] = (", ".join(map(str, found["checkpoints"])) or "none") + newest + aside
    if found["skipped"]:
        lines["skipped"] = f"{found['skipped']} update{'s were' if found['skipped'] > 1 else ' was'} skipped"
    if found["damaged_lines"]:
        lines["damaged"] = f"{found['damaged_lines']} lines of {METRICS} and {EVENTS}"
    if found["goodput"] is not None:
        total = sum(seconds.values())
        split = ", ".join(f"{name} {spent / total:.0%}" for name, spent in seconds.items() if name != "training")
        starts = f"{found['starts']} starts" if found["starts"] > 1 else "one start"
        again = f" ({found['lost_steps']} steps done again)" if found["lost_steps"] else ""
        lines["goodput"] = f"{found['goodput']:.0%} of {_long(total)} in {starts}: {split}{again}"
    return "\n".join(f"  {name:12} {line}" for name, line in lines.items())


def _checkpoints(run: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first; one that is being written has another name."""
    folder = run / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if path.name.isdecimal() and path.is_dir()), key=lambda path: int(path.name))


def _per_second(last: Record) -> float | None:
    """Steps a second of the newest process since its first one."""
    if not last or last["step"] == last["from"]:
        return None
    return (last["step"] - last["from"]) / sum(
        last["seconds"][name] for name in last["seconds"].keys() - {"start", "compile"}
    )


def _numbers(records: Sequence[Record], name: str) -> list[float]:
    values = [record.get(name) for record in records[-LAST:]]
    return [value for value in values if isinstance(value, int | float)]


def _age(paths: Sequence[Path]) -> float | None:
    """Seconds since one of these was last written."""
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # deleted meanwhile, or never written
            continue
    return max(0.0, time.time() - max(times)) if times else None


def _long(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
