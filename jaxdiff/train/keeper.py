"""The schedule of checkpoints; if a save fails, training continues and the save is repeated later."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxdiff.train.state import TrainState

# With several processes, each check for a failure exchanges messages; all of them check at the same steps.
LOOK = 50
# Seconds until a failed save is repeated; doubled after each further failure.
PAUSE = 60.0


class Store(Protocol):
    """The part of `Checkpointer` that training uses."""

    folder: Path

    def save(self, state: Any) -> None: ...
    def failure(self) -> Exception | None: ...
    def wait(self) -> None: ...
    def room(self, state: Any) -> Any: ...


class Keeper:
    """Saves states at regular steps, and earlier after a failure."""

    def __init__(self, store: Store | None, every: int, start: int, say: Callable[[str], None]):
        """Prepare the schedule.

        Args:
            store: a `Checkpointer`; None: no saves.
            every: steps between saves.
            start: step of the initial state.
            say: function that prints a line.
        """
        self.store, self._every, self._say = store, every, say
        self._step: int | None = start  # step of the newest saved state, as far as is known
        self._pause, self._again, self._asked = PAUSE, float("inf"), 0

    def due(self, done: int) -> bool:
        """Whether the state after this step is to be saved."""
        if self.store is None:
            return False
        self._asked += 1
        if jax.process_count() == 1 or self._asked % LOOK == 0:
            self._look(self.store)
        # By the clock only with one process: several must save the same step.
        soon = jax.process_count() == 1 and time.monotonic() >= self._again
        return done % self._every == 0 or soon

    def save(self, state: TrainState, done: int) -> None:
        """Start to save a state, unless this step is already saved."""
        if self.store is not None and done != self._step:
            self._step, self._again = done, float("inf")
            self.store.save(state)

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            Exception: the last save has failed.
        """
        if self.store is not None:
            self.store.wait()

    def rescue(self, state: TrainState) -> None:
        """Save a state before an exception ends the run, if steps would be lost; report the result."""
        if self.store is None:
            return
        try:
            done = int(state.step)  # waits for the state, and raises if a failed step has consumed it
            if done == self._step:
                return
            self.save(state, done)
            self.finish()
            self._say(f"saved step {done} before this failure ends the run")
        except Exception as error:
            self._say(f"the steps since the last checkpoint are lost: {error}")

    def warn_of_space(self, state: TrainState) -> None:
        """Warn if the disk has no room for the kept checkpoints and the next one."""
        if self.store is None:
            return
        try:
            needed, free = self.store.room(state)
        except OSError as error:
            self._say(f"the free space of {self.store.folder} is not known: {error}")
            return
        if free < needed:
            left, more = free / 1e9, needed / 1e9
            self._say(f"warning: {self.store.folder} has {left:.2f} GB left, and checkpoints will need {more:.2f} GB")

    def _look(self, store: Store) -> None:
        """Report a save that has failed since the last check."""
        error = store.failure()
        if error is None:
            return
        self._step, self._again = None, time.monotonic() + self._pause
        soon = f"after {self._pause:g} s, or when the next one is due" if jax.process_count() == 1 else "when due"
        self._say(f"a checkpoint was not saved: {error}; training continues; next save {soon}")
        self._pause *= 2
