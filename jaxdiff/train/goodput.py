"""Goodput: the share of a run's time spent on training, and the causes of the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdiff.train.log import Record

# Times of a process other than training: everything before the first step; compiling that step; waiting for data while
# no device works; saving, as far as training waits for it; drawing previews.
LOSSES = ("start", "compile", "data", "checkpoint", "preview")
# Seconds between records.
PERIOD = 30.0


class Goodput:
    """Account of the time of a training process, by a monotonic clock.

    Each record is {"began": start of the process and "time": time of the record, both in Unix seconds, "from": first
    step of the process, "step": current step, "steps": number of steps of the run, "skipped": skipped updates of the
    run, "seconds": {"training" and each of `LOSSES`: seconds since the process began}}.
    """

    def __init__(self, since: float | None = None) -> None:
        """Start the clock.

        Args:
            since: start of the process, by `time.monotonic`; None: now.
        """
        self.write: Callable[[Record], None] = lambda record: None
        self._since = time.monotonic() if since is None else since
        self._began = time.time() - (time.monotonic() - self._since)
        self._seconds = dict.fromkeys(LOSSES, 0.0)
        self._written = float("-inf")
        self._run: dict[str, int] = {}
        self.step_seconds = float("inf")  # of the shortest step that was waited for

    def begin(self, start: int, steps: int) -> None:
        """Begin training.

        Args:
            start: first step of this process.
            steps: number of steps of the run.
        """
        self._seconds["start"] = time.monotonic() - self._since - sum(self._seconds.values())
        self._run = {"from": start, "steps": steps}

    @contextlib.contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """Count the time within a `with` block as one of `LOSSES`."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._seconds[what] += time.monotonic() - since

    @contextlib.contextmanager
    def load(self, idle: Callable[[], bool], *, busy: bool = True) -> Iterator[None]:
        """Count as "data" the part of a `with` block in which no device worked.

        Args:
            idle: returns whether the devices have finished; called at the end of the block.
            busy: whether the devices began a step when the block began; `took` sets its duration.
        """
        since = time.monotonic()
        try:
            yield
        finally:
            if idle():
                self._seconds["data"] += max(0.0, time.monotonic() - since - (self.step_seconds if busy else 0.0))

    def took(self, seconds: float) -> None:
        """Report the duration of a step that was waited for; the shortest one counts."""
        self.step_seconds = min(self.step_seconds, seconds)

    def record(self, step: int, skipped: int, *, now: bool = False) -> None:
        """Write a record if the last one is older than `PERIOD`, or `now`."""
        passed = time.monotonic()
        if not now and passed - self._written < PERIOD:
            return
        self._written = passed
        training = passed - self._since - sum(self._seconds.values())
        seconds = {name: round(value, 3) for name, value in {"training": training, **self._seconds}.items()}
        counts = {"from": self._run["from"], "step": step, "steps": self._run["steps"], "skipped": skipped}
        self.write({"began": self._began, "time": time.time(), **counts, "seconds": seconds})


class Summary(NamedTuple):
    """The time of a run's processes."""

    starts: int  # processes that trained
    total: float  # seconds of all of them
    training: float  # seconds of steps that were not repeated
    losses: dict[str, float]  # seconds of `LOSSES`, and "lost": of steps that were repeated
    lost_steps: int

    @property
    def goodput(self) -> float:
        """The share of training in the total; 0 where the total is 0."""
        return self.training / self.total if self.total else 0.0


def is_complete(record: Record) -> bool:
    """Whether a record has all fields of `Goodput`."""
    seconds = record.get("seconds")
    numbers = [record.get(name) for name in ("began", "time", "from", "step", "steps", "skipped")]
    numbers += [seconds.get(name) for name in ("training", *LOSSES)] if isinstance(seconds, dict) else [None]
    return all(isinstance(value, int | float) for value in numbers)


def summary(records: Sequence[Record]) -> Summary:
    """Sum up the records of a run.

    Args:
        records: records of `Goodput`, in the order of writing.

    Returns:
        the Summary. Steps that a later process repeated count as lost, and so does their time.
    """
    last: dict[Any, Record] = {record["began"]: record for record in records}
    ends = list(last.values())
    losses = {name: sum(end["seconds"][name] for end in ends) for name in LOSSES} | {"lost": 0.0}
    training, lost_steps = sum(end["seconds"]["training"] for end in ends), 0
    kept = float("inf")  # the step up to which later processes repeated nothing
    for end in reversed(ends):
        done = end["step"] - end["from"]
        again = max(0, min(done, end["step"] - kept))
        lost_steps += again
        losses["lost"] += end["seconds"]["training"] * again / max(done, 1)
        kept = min(kept, end["from"])
    total = training + sum(losses.values()) - losses["lost"]
    return Summary(len(ends), total, training - losses["lost"], losses, lost_steps)
