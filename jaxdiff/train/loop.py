"""The training loop, with logs, previews, snapshots and checkpoints."""

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdiff.faults import NotFinite
from jaxdiff.sharding import shard_batch
from jaxdiff.signals import Signals, Stopped
from jaxdiff.train.display import Display
from jaxdiff.train.goodput import Goodput
from jaxdiff.train.keeper import Keeper, Store
from jaxdiff.train.log import Record
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import Step
from jaxdiff.train.watchdog import Watchdog

# Factor of the timeout of a step for what compiles (the first step, a preview) or writes (a checkpoint).
SLOW_FACTOR = 10
# Number of initial dispatches that are waited for one by one, to measure the duration of a step.
PROBES = 4
# Short steps are waited for several at a time, since each waiting wakes this thread: as many as take this many seconds.
QUEUED, MOST_QUEUED = 0.04, 8

Look = Callable[[TrainState], None]


def fit(
    step: Step,
    state: TrainState,
    batches: Iterator[Any],
    *,
    steps: int,
    mesh: Mesh,
    checkpointer: Store | None = None,
    save_every: int = 1000,
    preview: Look | None = None,
    preview_every: int = 1000,
    snapshot: Look | None = None,
    snapshot_every: int = 1000,
    log: Callable[[Record], None] | None = None,
    max_skipped: int = 10,
    hang_timeout: float | None = None,
    signals: Signals | None = None,
    goodput: Goodput | None = None,
) -> TrainState:
    """Train until `state.step` is `steps`; a state from a checkpoint continues from its step.

    On SIGTERM or the first Ctrl-C, the steps that run finish, the state is saved, and the function returns early
    (state.step < steps), without waiting for data or a preview. A failed save, a preview or snapshot that cannot be
    written, or a log that raises does not end training: the error is printed, and a save is repeated. The state is
    saved before any other exception propagates; with several processes only if all of them raise it, since a save
    needs all.

    Args:
        step: from `make_step`.
        state: from `init_state` or a checkpoint; it is donated.
        batches: iterator of this host's numpy batches; the next one has number `state.step`.
        steps: total number of batches, including those before a resume.
        mesh: from `make_mesh`.
        checkpointer: saves the state every `save_every` steps and at the end; None: no saves.
        save_every: steps between checkpoints.
        preview: called with the state every `preview_every` steps and at the end.
        preview_every: steps between previews.
        snapshot: called with the state every `snapshot_every` steps and at the end, e.g. `Snapshots.save`.
        snapshot_every: steps between snapshots.
        log: called for each step with its metrics, "step" and "images_per_s": in bundles, of about a fifth of a second
            where batches come in time, and before each save, preview and snapshot.
        max_skipped: number of consecutive skipped updates, see `make_step`, that ends training.
        hang_timeout: seconds without a finished step after which the process prints its stacks and exits with status
            75, so that a peer that hangs ends the job; ten times as long during compilation and saves; None: never.
        signals: handlers that the caller has entered; None: handle signals during this call.
        goodput: account of the time.

    Returns:
        the last state.

    Raises:
        NotFinite: `max_skipped` consecutive updates were skipped.
        ValueError: a count is less than 1 or not a multiple of the step's `steps_per_call`, hang_timeout is not
            positive, or the batches end early.
        Exception: the last save failed, or batches, preview or snapshot raised.
    """
    start, stride = int(state.step), step.steps_per_call
    rhythm = {"save_every": save_every, "preview_every": preview_every, "snapshot_every": snapshot_every}
    for name, value in {"steps": steps, "max_skipped": max_skipped, **rhythm}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if start >= steps:
        return state
    used = zip(rhythm, (checkpointer, preview, snapshot), strict=True)
    _check_multiples({"state.step": start, "steps": steps, **{name: rhythm[name] for name, by in used if by}}, stride)
    goodput = goodput or Goodput()
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(hang_timeout))
        if signals is None:
            signals = Signals()
            if jax.process_count() > 1:
                signals.many()
            stack.enter_context(signals)
        display = stack.enter_context(Display(start, steps, log, max_skipped))
        keeper = Keeper(checkpointer, save_every, start, display.say)
        keeper.warn_of_space(state)
        looks = (_Look("preview", preview, preview_every), _Look("snapshot", snapshot, snapshot_every))
        run = _Run(step, state, batches, mesh, steps, start, looks, display, keeper, watchdog, signals, goodput)
        run.train()
    return run.state


@dataclass
class _Look:
    """A function of the state, and the steps between its calls."""

    name: str
    call: Look | None
    every: int

    def due(self, done: int, steps: int) -> bool:
        return self.call is not None and (done == steps or done % self.every == 0)


@dataclass
class _Run:
    """One call of `fit`: the state, and the objects that show, save and watch it."""

    step: Step
    state: TrainState
    batches: Iterator[Any]
    mesh: Mesh
    steps: int
    done: int
    looks: tuple[_Look, _Look]
    display: Display
    keeper: Keeper
    watchdog: Watchdog
    signals: Signals
    goodput: Goodput

    def __post_init__(self) -> None:
        self.start, self.skipped, self.stopping = self.done, int(self.state.skipped), False
        # On simulated devices, steps in flight can deadlock in their collectives; real devices queue them. Several
        # processes must end at the same step, whatever their clocks say of the duration of one.
        simulated = self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu"
        self.most = 0 if simulated else 1 if jax.process_count() > 1 else MOST_QUEUED

    def train(self) -> None:
        self.goodput.begin(self.start, self.steps)
        self.watchdog.beat(SLOW_FACTOR)  # the first step compiles
        try:
            batch = self.load()
            while batch is not None:
                metrics = self.dispatch(batch)
                last = self.done == self.steps
                self.stopping = not last and self.asked()
                batch = None if self.stopping or last else self.load(metrics)
                self.look_after(last=batch is None)
                if self.stopping:
                    break
            self.doing(f"saving step {self.done}")
            with self.goodput.spend("checkpoint"):
                self.keeper.finish()
        except Exception as error:
            # Other processes would wait for this one within a collective, not in a save.
            if jax.process_count() == 1 or isinstance(error, NotFinite):
                self.watchdog.beat(SLOW_FACTOR)
                with contextlib.suppress(Exception):  # the one that ends training is raised below
                    self.display.flush(0)
                self.keeper.rescue(self.state)
            else:
                lost = "the steps since the last checkpoint are not saved: all processes would have to save"
                print(f"jaxdiff: process {jax.process_index()} ends: {lost}", file=sys.stderr, flush=True)
            raise
        finally:
            self.record(now=True)
            self.signals.unsaved(False)
        if self.stopping:
            kept = f"saved step {self.done}" if self.keeper.store is not None else "nothing is saved"
            kept = kept if self.done > self.start else "nothing was lost"
            self.display.say(f"stopped by a signal after step {self.done} of {self.steps}; {kept}")

    def load(self, metrics: Any = None) -> Any:
        """Return the next batch on the devices, loaded while they compute `metrics`; None: a signal arrived."""
        self.doing("waiting for data")
        idle = lambda: metrics is None or metrics["skipped"].is_ready()  # noqa: E731
        try:
            with self.signals.raising(), self.goodput.load(idle, busy=not self.probing()):
                return _next(self.batches, self.mesh, self.done, self.step.steps_per_call)
        except Stopped:
            self.stopping = True
            return None

    def probing(self) -> bool:
        return self.done - self.start <= PROBES * self.step.steps_per_call

    def dispatch(self, batch: Any) -> Any:
        """Start a step; return its metrics."""
        first, since = self.done == self.start, time.monotonic()
        self.doing("compiling the step" if first else "waiting for the devices")  # a call may wait for steps in flight
        with self.goodput.spend("compile") if first else contextlib.nullcontext():
            self.state, metrics = self.step(self.state, batch)
        self.signals.unsaved(True)
        self.done += self.step.steps_per_call
        images = jax.tree.leaves(batch)[0].shape[: 1 + (self.step.steps_per_call > 1)]
        self.display.push(self.done, metrics, math.prod(images))
        if self.probing():
            self.flush(0)
            if not first:
                self.goodput.took(time.monotonic() - since)
        return metrics

    def flush(self, ahead: int) -> None:
        self.doing("waiting for the devices")
        if self.display.flush(ahead):
            self.watchdog.beat()

    def asked(self) -> bool:
        """Whether a signal requests a stop; several processes agree on one step by JAX's own handler."""
        if jax.process_count() == 1:
            return self.signals.received is not None
        # JAX stops at one particular number: the numbers must have no gaps.
        return multihost_utils.reached_preemption_sync_point((self.done - self.start) // self.step.steps_per_call)

    def look_after(self, *, last: bool) -> None:
        """Save, snapshot and preview as due after a step."""
        saving = self.keeper.due(self.done) or last
        preview, snapshot = (look if look.due(self.done, self.steps) else None for look in self.looks)
        rare = saving or preview is not None or snapshot is not None
        most = min(self.most, max(1, int(QUEUED / self.goodput.step_seconds)))
        if rare or self.display.due(most):
            self.flush(0 if rare else (most + 1) // 2)
        if rare:
            self.watchdog.beat(SLOW_FACTOR)
        if saving:
            self.save()
        if snapshot is not None:
            self.doing(f"keeping a snapshot of step {self.done}")
            self.show(snapshot, "checkpoint")
        if preview is not None and not self.stopping:
            self.doing(f"drawing a preview of step {self.done}")
            try:
                with self.signals.raising():
                    self.show(preview, "preview")
            except Stopped:
                self.stopping = True
                self.save()
        self.record()
        if rare and not last:
            self.watchdog.beat()

    def save(self) -> None:
        self.doing(f"saving step {self.done}")
        with self.goodput.spend("checkpoint"):
            self.keeper.save(self.state, self.done)

    def show(self, look: _Look, what: str) -> None:
        try:
            with self.goodput.spend(what):
                look.call(self.state)  # type: ignore[misc]
        except OSError as error:
            self.display.say(f"no {look.name} of step {self.done}: {error}; training continues")

    def record(self, *, now: bool = False) -> None:
        self.goodput.record(self.done, self.skipped + self.display.skipped, now=now)

    def doing(self, what: str) -> None:
        self.watchdog.doing = self.signals.doing = what


def _check_multiples(counts: dict[str, int], stride: int) -> None:
    for name, value in counts.items():
        if value % stride:
            raise ValueError(f"{name} must be a multiple of steps_per_call={stride}, got {value}")


def _next(batches: Iterator[Any], mesh: Mesh, done: int, count: int) -> Any:
    """Return the next batch, or a stack of `count` batches, on the devices of a mesh or for its only device."""
    loaded = list(itertools.islice(batches, count))
    if len(loaded) < count:
        raise ValueError(f"the batches ended after step {done + len(loaded)}; training needs one for each step")
    axis = int(count > 1)
    batch = jax.tree.map(lambda *parts: np.stack(parts), *loaded) if axis else loaded[0]
    # To one device jit transfers arrays itself, also asynchronously, without the Python of placing each of them.
    if mesh.size == 1 and all(isinstance(x, np.ndarray) and x.ndim > axis for x in jax.tree.leaves(batch)):
        return batch
    return shard_batch(batch, mesh, axis)
