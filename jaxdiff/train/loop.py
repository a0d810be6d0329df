"""The training loop: batches in, steps out, and everything that a person wants to see or keep on the way."""

import contextlib
import itertools
import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdiff.sharding import shard_batch
from jaxdiff.train.checkpoint import Checkpointer
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import Step
from jaxdiff.train.watchdog import Watchdog

Record = dict[str, float]

# How many times as long as a step may take what compiles (the first step, a preview) or writes (a checkpoint).
RARE = 10


def fit(
    step: Step,
    state: TrainState,
    batches: Iterator[Any],
    *,
    steps: int,
    mesh: Mesh,
    checkpointer: Checkpointer | None = None,
    save_every: int = 1000,
    preview: Callable[[TrainState], None] | None = None,
    preview_every: int = 1000,
    snapshot: Callable[[TrainState], None] | None = None,
    snapshot_every: int = 1000,
    log: Callable[[Record], None] | None = None,
    patience: float | None = None,
) -> TrainState:
    """Train until `state.step` is `steps`; a state from a checkpoint goes on where it stopped.

    SIGTERM or the first Ctrl-C lets the running step finish, saves, and returns early (state.step < steps).

    Args:
        step: from `make_step`.
        state: from `create` or a checkpoint; it is donated.
        batches: iterator of this host's numpy batches, the next one being number `state.step`.
        steps: number of updates in all, those before a resume included.
        mesh: from `make_mesh`.
        checkpointer: where to save every `save_every` steps and at the end; None saves nothing.
        save_every: steps between two checkpoints.
        preview: called with the state every `preview_every` steps and at the end.
        preview_every: steps between two previews.
        snapshot: called likewise every `snapshot_every` steps and at the end, with `Snapshots.save` say.
        snapshot_every: steps between two snapshots.
        log: called after each step with its metrics, "step" and "images_per_s".
        patience: seconds without a finished step, ten times as many where something compiles or is saved, until the
            process shows its stacks and ends with status 75, so that a peer that hangs ends the job; None: never.

    Returns:
        The last state.

    Raises:
        ValueError: a count is less than 1 or no multiple of the step's `per_dispatch`, patience not positive, the
            batches end early, or a loss or gradient is not finite.
    """
    start, stride = int(state.step), step.per_dispatch
    rhythm = {"save_every": save_every, "preview_every": preview_every, "snapshot_every": snapshot_every}
    for name, value in {"steps": steps, **rhythm}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if start >= steps:
        return state
    used = zip(rhythm, (checkpointer, preview, snapshot), strict=True)
    _check_multiples({"state.step": start, "steps": steps, **{name: rhythm[name] for name, by in used if by}}, stride)
    with Watchdog(patience) as watchdog, _stop_flag() as stop, _Display(start, steps, log) as display:
        watchdog.beat(RARE)  # the first step compiles
        # Steps in flight on simulated devices can wait for each other's collectives; real devices queue them.
        ahead = 0 if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu" else 1
        batch = _next(batches, mesh, start, stride)
        for done in range(start + stride, steps + 1, stride):
            images = jax.tree.leaves(batch)[0].shape[: 1 + (stride > 1)]
            state, metrics = step(state, batch)
            display.push(done, metrics, math.prod(images))
            last = done == steps or stop(done)
            if not last:
                batch = _next(batches, mesh, done, stride)  # loads and copies while the device computes
            saving = checkpointer is not None and (last or done % save_every == 0)
            previewing = preview is not None and (done == steps or done % preview_every == 0)
            snapping = snapshot is not None and (done == steps or done % snapshot_every == 0)
            rare = saving or previewing or snapping
            # What is kept or shown must be known to be finite, so nothing may be left in flight.
            if display.settle(0 if rare or last else ahead):
                watchdog.beat(RARE if rare else 1)
            if saving:
                checkpointer.save(state)  # type: ignore[union-attr]
            if previewing:
                preview(state)  # type: ignore[misc]
            if snapping:
                snapshot(state)  # type: ignore[misc]
            if last:
                break
            if rare:
                watchdog.beat()
        if checkpointer is not None:
            checkpointer.wait()
        if done < steps:
            saved = f"saved step {done}" if checkpointer is not None else "nothing is saved"
            display.say(f"stopped by a signal after step {done} of {steps}; {saved}")
    return state


def metrics_file(path: str | os.PathLike[str], start: int = 0) -> Callable[[Record], None]:
    """Log each record as a line of JSON; only the first process writes.

    Args:
        path: the file; its folder is made if missing.
        start: the step that the run resumes from. Later lines, of steps that were lost, are removed.

    Returns:
        A function to pass to `fit` as `log`.
    """
    if jax.process_index() != 0:
        return lambda record: None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
        path.write_text("".join(line + "\n" for line in kept))
    file = path.open("a", buffering=1)  # a line is on its way to disk as soon as it is whole
    return lambda record: print(json.dumps(record), file=file)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # the last line of a run that was killed
        return float("inf")


def _check_multiples(counts: dict[str, int], stride: int) -> None:
    for name, value in counts.items():
        if value % stride:
            raise ValueError(f"{name} must be a multiple of per_dispatch={stride}, got {value}")


def _next(batches: Iterator[Any], mesh: Mesh, done: int, count: int) -> Any:
    """The next batch, or a stack of more than one, on the devices."""
    loaded = list(itertools.islice(batches, count))
    if len(loaded) < count:
        raise ValueError(f"the batches ended after step {done + len(loaded)}; training needs one for each step")
    if count == 1:
        return shard_batch(loaded[0], mesh)
    return shard_batch(jax.tree.map(lambda *parts: np.stack(parts), *loaded), mesh, axis=1)


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[int], bool]]:
    """Turn SIGTERM and the first SIGINT into a flag, read once a step; the second SIGINT interrupts."""
    if jax.process_count() > 1:
        # All hosts have to stop after the same step. JAX's own handler of SIGTERM makes them agree on it.
        yield multihost_utils.reached_preemption_sync_point
        return
    seen: list[int] = []
    old: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    with contextlib.suppress(ValueError):  # only the main thread may handle signals
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, handle)
    try:
        yield lambda step: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Display:
    """The progress bar and the log; metrics wait here until their step has finished on the device."""

    def __init__(self, start: int, steps: int, log: Callable[[Record], None] | None):
        self._log = log
        self._pending: deque[tuple[int, Any, int]] = deque()
        self._since: float | None = None  # when the last step finished; None: still compiling
        # In a file each refresh is a line of its own, so there are few of them.
        from tqdm import tqdm

        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc="compiling",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() != 0,
        )

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, message: str) -> None:
        if jax.process_index() == 0:
            self._bar.write(message, file=sys.stderr)

    def push(self, done: int, metrics: Any, size: int) -> None:
        self._pending.append((done, metrics, size))

    def settle(self, ahead: int) -> bool:
        """Wait until at most `ahead` steps are in flight; show and log the others. Return whether there were any."""
        finished = len(self._pending) > ahead
        while len(self._pending) > ahead:
            done, metrics, size = self._pending.popleft()
            # One number a metric, or one for each update of a dispatch.
            values = {name: np.ravel(value) for name, value in jax.device_get(metrics).items()}
            count = len(values["loss"])
            records = [
                {"step": done - count + 1 + i, **{name: float(value[i]) for name, value in values.items()}}
                for i in range(count)
            ]
            for record, name in itertools.product(records, ("loss", "grad_norm")):
                if not np.isfinite(record[name]):
                    raise ValueError(
                        f"{name} is {record[name]} at step {record['step']}; the update was not made, and earlier "
                        f"checkpoints are good. Try a smaller learning rate or stronger clipping"
                    )
            self._show(records, size)
        return finished

    def _show(self, records: list[Record], size: int) -> None:
        now = time.perf_counter()
        if self._since is None:
            self._bar.set_description("training", refresh=False)
            self._bar.unpause()  # the time left should not count the compilation
        else:
            records = [record | {"images_per_s": size / (now - self._since)} for record in records]
        self._since = now
        last = records[-1]
        self._bar.set_postfix_str(f"loss {last['loss']:.4f}, {last.get('images_per_s', 0):.0f} images/s", refresh=False)
        self._bar.update(len(records))
        if self._log is not None:
            for record in records:
                self._log(record)
