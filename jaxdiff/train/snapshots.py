"""Snapshots of a run's averages, and reconstruction of averages of other lengths."""

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
    """The content of a snapshot."""

    step: jax.Array  # number of updates so far
    ema: tuple[Any, ...]


class Snapshots:
    """Snapshots of a run's averages under `workdir/snapshots/UPDATES`, saved in the background and never deleted."""

    def __init__(self, workdir: str | os.PathLike[str], *, read_only: bool = False):
        """Open a run's snapshots.

        Args:
            workdir: the run's folder.
            read_only: change nothing on disk.
        """
        self._store = Checkpointer(workdir, folder=FOLDER, keep=None, read_only=read_only)

    def save(self, state: TrainState) -> None:
        """Start to save a state's averages; an existing snapshot is kept, since a resumed run computes the same one.

        If the last snapshot could not be written, print a line on stderr.

        Args:
            state: a `TrainState`; it may be donated as soon as this returns.
        """
        failure = self._store.failure()
        if failure is not None and jax.process_index() == 0:
            print(f"jaxdiff: a snapshot was not saved: {failure}", file=sys.stderr)
        updates = state.step - state.skipped  # the averages count updates, not batches
        if int(updates) not in self._store.steps():
            several = state.ema if isinstance(state.ema, tuple) else (state.ema,)
            self._store.save(Snapshot(updates, several))

    def reconstruct(
        self, decays: averages.Decays, std: float, *, step: int | None = None, mesh: Mesh | None = None
    ) -> tuple[Any, float]:
        """Reconstruct the power-function average of any length (Karras et al. 2024, arXiv:2312.02696, sec. 3.2).

        Stored averages are loaded onto the devices one at a time.

        Args:
            decays: decays of the run's averages, all from `ema.power`.
            std: relative width of the average, see `ema.power`.
            step: end of the average, the number of updates of a snapshot; None: the last.
            mesh: mesh of the parameters; None: the default device.

        Returns:
            (parameters, float32, and the error of their profile, see `ema.posthoc`).

        Raises:
            ValueError: there is no snapshot, or none of `step`, a snapshot is damaged, std is out of range, or a decay
                is not from `ema.power`.
        """
        several = decays if isinstance(decays, tuple) else (decays,)
        powers = [decay for decay in several if isinstance(decay, averages.Power)]
        if len(powers) < len(several):
            raise ValueError("averages of other lengths are reconstructed from averages of train.ema.power only")
        steps = self._store.steps()
        end = max(steps, default=0) if step is None else step
        if end not in steps:  # sums of the stored profiles approximate a profile that ends between two poorly
            raise ValueError(f"no average after update {end} can be reconstructed from the snapshots of {steps}")
        stored = [(t, i) for t in steps for i in range(len(powers))]
        weights, error = averages.posthoc([(t, powers[i]) for t, i in stored], (end, averages.power(std)))
        total = None
        for (t, i), weight in zip(stored, weights, strict=True):
            if abs(weight) > np.finfo(np.float32).eps:  # smaller weights have no effect in float32
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
