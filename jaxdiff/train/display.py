"""The progress bar of training, the records of its log, and messages about skipped updates."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.faults import NotFinite
from jaxdiff.train.log import Record

# Seconds between the bundles of metrics that are fetched: each array of them costs time of the host.
PERIOD = 0.2


class _Finished(NamedTuple):
    """A dispatch that the devices have finished, whose metrics are not fetched yet."""

    done: int  # number of its last step
    metrics: Any
    size: int  # examples
    at: float  # time


class Display:
    """The progress bar and the log; metrics stay on the device until their step has finished, and come in bundles."""

    def __init__(self, start: int, steps: int, log: Callable[[Record], None] | None, max_skipped: int):
        """Show a bar.

        Args:
            start: first step of this training.
            steps: number of steps of the whole run.
            log: called with the record of each step.
            max_skipped: number of consecutive skipped updates at which `flush` raises.
        """
        from tqdm import tqdm

        self.skipped = 0
        self._log, self._log_failed = log, False
        self._most, self._in_a_row = max_skipped, 0
        self._pending: deque[tuple[int, Any, int]] = deque()
        self._finished: list[_Finished] = []
        self._reported = float("-inf")  # time of the last bundle
        self._since: float | None = None  # time at which the last step finished; None: still compiling
        # In a file each refresh is a separate line: refresh rarely.
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc="compiling",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() != 0,
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            # Of what ends training, the first exception counts: a device that has failed has no metrics.
            with contextlib.suppress(*() if kind is None else (Exception,)):
                self._report()
        finally:
            self._bar.close()

    def say(self, message: str) -> None:
        """Print a line above the bar, in the first process."""
        if jax.process_index() == 0:
            self._bar.write(message, file=sys.stderr)

    def due(self, most: int) -> bool:
        """Whether to `flush`: more than `most` dispatches are queued, or the last bundle is older than `PERIOD`."""
        return len(self._pending) > most or time.perf_counter() - self._reported >= PERIOD

    def push(self, done: int, metrics: Any, size: int) -> None:
        """Queue the metrics, possibly not yet computed, of the steps up to `done` on `size` examples."""
        self._pending.append((done, metrics, size))

    def flush(self, ahead: int) -> bool:
        """Wait until at most `ahead` dispatches are running, and take all that have finished.

        They are shown and logged if the last bundle is older than `PERIOD`, if an update was skipped, or if `ahead` is
        0. Several processes must find too many skipped updates at the same step: they take what they have waited for.

        Returns:
            whether any has finished.

        Raises:
            NotFinite: too many consecutive updates were skipped.
        """
        finished = False
        while len(self._pending) > ahead or (
            self._pending and jax.process_count() == 1 and self._pending[0][1]["skipped"].is_ready()
        ):
            done, metrics, size = self._pending.popleft()
            finished = True
            skipped = np.count_nonzero(metrics["skipped"])  # waits for the dispatch
            self._finished.append(_Finished(done, metrics, size, time.perf_counter()))
            if skipped:
                self._report()
        if ahead == 0 or (finished and self._finished and self._finished[-1].at - self._reported >= PERIOD):
            self._report()
        return finished

    def _report(self) -> None:
        """Fetch the metrics of the finished dispatches; show and log them."""
        finished, self._finished = self._finished, []
        self._reported = time.perf_counter()
        # Several may be found done at one moment: the time since the last bundle is that of all of them.
        rate = None
        if finished and self._since is not None:
            rate = sum(each.size for each in finished) / (finished[-1].at - self._since)
        for (done, _, _, at), metrics in zip(finished, _fetched(finished), strict=True):
            count = len(metrics["loss"])
            records = [
                {"step": done - count + 1 + i, **{name: values[i] for name, values in metrics.items()}}
                for i in range(count)
            ]
            self._show(records, rate, at)
            for record in records:
                self._look(record)

    def _look(self, record: Record) -> None:
        """Report a skipped update, at increasing intervals; raise after too many consecutive ones."""
        if not record["skipped"]:
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        step, why = record["step"], _why(record)
        if self._in_a_row >= self._most:
            raise NotFinite(
                f"{why} at step {step}: the updates of {self._in_a_row} consecutive batches were skipped, and the "
                f"parameters are those of step {step - self._in_a_row}. Try a smaller learning rate or stronger "
                f"clipping, and look at the data of these steps"
            )
        if self.skipped & (self.skipped - 1) == 0:
            self.say(f"{why} at step {step}: its update was skipped ({self.skipped} so far)")

    def _show(self, records: list[Record], rate: float | None, now: float) -> None:
        if self._since is None:
            self._bar.set_description("training", refresh=False)
            self._bar.unpause()  # the time left should not count the compilation
        if rate is not None:
            records = [record | {"images_per_s": rate} for record in records]
        self._since = now
        last = records[-1]
        self._bar.set_postfix_str(f"loss {last['loss']:.4f}, {last.get('images_per_s', 0):.0f} images/s", refresh=False)
        self._bar.update(len(records))
        for record in records if self._log is not None else ():
            self._tell(record)

    def _tell(self, record: Record) -> None:
        try:
            self._log(record)  # type: ignore[misc]
        except Exception as error:  # an unavailable tracker is no reason to stop
            if not self._log_failed:
                self._log_failed = True
                self.say(f"the log fails: {type(error).__name__}: {error}; training continues")


def _fetched(finished: Sequence[_Finished]) -> list[dict[str, list[Any]]]:
    """Return the metrics of dispatches as numbers: one for each update."""
    for x in (x for each in finished for x in each.metrics.values() if jax.default_backend() != "cpu"):
        x.copy_to_host_async()  # all at once; there is nothing to copy on a CPU
    return [{name: np.asarray(x).reshape(-1).tolist() for name, x in each.metrics.items()} for each in finished]


def _why(record: Record) -> str:
    for name in ("loss", "grad_norm"):
        if not np.isfinite(record[name]):
            return f"{name} is {record[name]}"
    return f"the update is not finite, or was refused as a spike (grad_norm is {record['grad_norm']:.4g})"
