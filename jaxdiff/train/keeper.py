"""When a run's states are saved, and what is done when that fails: training goes on, and it is tried again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxdiff.train.state import TrainState

# Seconds until a save that has failed is tried again; twice as many after each further failure.
PAUSE = 60.0


class Store(Protocol):
    """What training needs of a `Checkpointer`."""

    folder: Path

    def save(self, state: Any) -> None: ...
    def failure(self) -> Exception | None: ...
    def wait(self) -> None: ...
    def steps(self) -> list[int]: ...


class Saves:
    """Saves a state at regular steps, and sooner after a failure; remembers what is not on disk."""

    def __init__(self, store: Store | None, every: int, start: int, say: Callable[[str], None]):
        """Begin.

        Args:
            store: a `Checkpointer`; None saves nothing.
            every: steps between two saves.
            start: step of the state that training begins with.
            say: shows a line.
        """
        self.store, self._every, self._say = store, every, say
        self._step: int | None = start  # of the newest state that is saved, as far as is known
        self._pause, self._again = PAUSE, float("inf")

    def due(self, done: int) -> bool:
        """Whether to save the state after this step."""
        self.look()
        # By the clock only where there is nobody who would have to save the same step.
        soon = jax.process_count() == 1 and time.monotonic() >= self._again
        return self.store is not None and (done % self._every == 0 or soon)

    def save(self, state: TrainState, done: int) -> None:
        """Start to save a state, unless that of this step is saved."""
        if self.store is not None and done != self._step:
            self._step, self._again = done, float("inf")
            self.store.save(state)

    def look(self) -> None:
        """Say what became of a save that has failed since the last look."""
        error = self.store.failure() if self.store is not None else None
        if error is not None:
            self._step, self._again = None, time.monotonic() + self._pause
            soon = f"after {self._pause:g} s, or when the next one is due" if jax.process_count() == 1 else "when due"
            _say_here(f"a checkpoint was not saved: {error}; training goes on, and saves again {soon}")
            self._pause *= 2

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            Exception: the last save has failed.
        """
        if self.store is None:
            return
        self.store.wait()
        error = self.store.failure()
        if error is not None:
            raise error

    def rescue(self, state: TrainState) -> None:
        """Save a state before an exception goes on, if there are steps to lose; say what becomes of it."""
        if self.store is None:
            return
        try:
            done = int(state.step)  # waits for it, and raises if a step that failed has taken the state with it
            if done == self._step:
                return
            self.save(state, done)
            self.finish()
            self._say(f"saved step {done} before this failure ends the run")
        except Exception as error:
            self._say(f"what was done since the last checkpoint is lost: {error}")


def warn_of_space(store: Store, state: TrainState) -> None:
    """Say so if the disk has no room for two checkpoints and a third one that is being written."""
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    try:
        free = shutil.disk_usage(store.folder).free
    except OSError as error:
        _say_here(f"the free space of {store.folder} is not known: {error}")
        return
    room = free // size + len(store.steps())
    if room < 3:
        _say_here(
            f"warning: {store.folder} has {free / 1e9:.2f} GB left, and a checkpoint has {size / 1e9:.2f} GB: "
            f"there is room for {room} in all, and a run needs 3, the one that is being written included"
        )


def _say_here(text: str) -> None:
    """Each process speaks for itself: a disk may be full on one host alone."""
    print(f"jaxdiff: {text}", file=sys.stderr, flush=True)
