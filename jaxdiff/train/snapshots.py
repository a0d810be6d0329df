"""A run's averages, kept from its way, and averages of other lengths put together from them afterwards."""

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
    """What is kept of a state."""

    step: jax.Array  # updates made so far
    ema: tuple[Any, ...]


class Snapshots:
    """Saves a run's averages under `workdir/snapshots/UPDATES`, in the background, for good."""

    def __init__(self, workdir: str | os.PathLike[str], *, read_only: bool = False):
        """Open a run's snapshots.

        Args:
            workdir: the run's folder.
            read_only: never make or change anything.
        """
        self._store = Checkpointer(workdir, folder=FOLDER, keep=None, read_only=read_only)

    def save(self, state: TrainState) -> None:
        """Start to save a state's averages; one that exists stays, as a resumed run makes the same again.

        If the last one could not be written, a line on stderr says so: there is none of that step.

        Args:
            state: a `TrainState`; it may be donated as soon as this returns.
        """
        failure = self._store.failure()
        if failure is not None and jax.process_index() == 0:
            print(f"jaxdiff: a snapshot was not saved: {failure}", file=sys.stderr)
        made = state.step - state.skipped  # what the averages count
        if int(made) not in self._store.steps():
            several = state.ema if isinstance(state.ema, tuple) else (state.ema,)
            self._store.save(Snapshot(made, several))

    def reconstruct(
        self, decays: averages.Decays, std: float, *, step: int | None = None, mesh: Mesh | None = None
    ) -> tuple[Any, float]:
        """Put together the power-function average of any length (Karras et al. 2024, arXiv:2312.02696, section 3.2).

        One stored average at a time is read, onto the devices.

        Args:
            decays: what the run tracked, from `ema.power` all of them.
            std: of the average wanted, see `ema.power`.
            step: of which snapshot, the end of the average, in updates; None is the last.
            mesh: where the parameters shall lie; None is the default device.

        Returns:
            (the parameters, float32, and how far their profile is from the wanted one, see `ema.posthoc`).

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
