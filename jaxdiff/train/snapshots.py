"""Snapshots of a run's averages, and averages of other lengths, reconstructed from them afterwards."""

import os
import sys
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiff.train import ema as averages
from jaxdiff.train.checkpoint import Checkpointer
from jaxdiff.train.state import TrainState

FOLDER = "snapshots"


class Snapshot(NamedTuple):
    """The part of a state that a snapshot has."""

    step: jax.Array  # updates made so far
    ema: tuple[Any, ...]


class Snapshots:
    """Saves a run's averages under `workdir/snapshots/UPDATES`, in the background; none is deleted."""

    def __init__(self, workdir: str | os.PathLike[str], *, read_only: bool = False):
        """Open a run's snapshots.

        Args:
            workdir: the run's folder.
            read_only: never make or change anything.
        """
        self._store = Checkpointer(workdir, folder=FOLDER, keep=None, read_only=read_only)

    def save(self, state: TrainState) -> None:
        """Start to save a state's averages; an existing snapshot stays, since a resumed run makes the same one.

        If the last snapshot could not be written, print a line on stderr.

        Args:
            state: a `TrainState`; it may be donated as soon as this returns.
        """
        failure = self._store.failure()
        if failure is not None and jax.process_index() == 0:
            print(f"jaxdiff: a snapshot was not saved: {failure}", file=sys.stderr)
        updates = state.step - state.skipped  # the averages count updates that were made
        if int(updates) not in self._store.steps():
            several = state.ema if isinstance(state.ema, tuple) else (state.ema,)
            self._store.save(Snapshot(updates, several))

    def reconstruct(
        self, decays: averages.Decays, std: float, *, step: int | None = None, mesh: Mesh | None = None
    ) -> tuple[Any, float]:
        """Reconstruct the power-function average of any length (Karras et al. 2024, arXiv:2312.02696, sec. 3.2).

        Stored averages are read one at a time, onto the devices.

        Args:
            decays: those that the run tracked, all of them from `ema.power`.
            std: of the average, see `ema.power`.
            step: of a snapshot, the end of the average, in updates; None: the last.
            mesh: for the parameters; None: the default device.

        Returns:
            (the parameters, float32, and the error of their profile, see `ema.posthoc`).

        Raises:
            ValueError: there are no snapshots, or none of `step`, one is damaged, std is out of range, or a decay
                is not from `ema.power`.
        """
        several = decays if isinstance(decays, tuple) else (decays,)
        powers = [decay for decay in several if isinstance(decay, averages.Power)]
        if len(powers) < len(several):
            raise ValueError("averages of other lengths are made of those that train.ema.power tracked, and only those")
        steps = self._store.steps()
        end = max(steps, default=0) if step is None else step
        if end not in steps:  # a profile that ends between two is far from all sums of theirs
            raise ValueError(f"no average after update {end} can be made of the snapshots of {steps}")
        stored = [(t, i) for t in steps for i in range(len(powers))]
        weights, error = averages.posthoc([(t, powers[i]) for t, i in stored], (end, averages.power(std)))
        total = None
        for (t, i), weight in zip(stored, weights, strict=True):
            if abs(weight) > np.finfo(np.float32).eps:  # the others change no bit
                part = self._store.restore_params(f"ema/{i}", t, mesh=mesh)
                total = _scaled(part, weight) if total is None else _added(total, part, weight)
        return total, error

    def close(self) -> None:
        """Wait for running saves and release the background threads."""
        self._store.close()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self.close()


@partial(jax.jit, donate_argnums=0)
def _scaled(part: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda x: x * weight.astype(x.dtype), part)


@partial(jax.jit, donate_argnums=0)
def _added(total: Any, part: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda x, y: x + y * weight.astype(x.dtype), total, part)
