"""Checkpoints of a run: saved in the background, verified when they are read, and replaced by older ones if damaged."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff import storage, trees
from jaxdiff.faults import Damaged
from jaxdiff.messages import listed
from jaxdiff.sharding import shard_params
from jaxdiff.train.checkpoint import flat, steps, together
from jaxdiff.train.checkpoint.arrays import Arrays
from jaxdiff.train.checkpoint.reading import Choose, Described, read
from jaxdiff.train.checkpoint.saving import Saving
from jaxdiff.train.layouts import arranged

FOLDER = "checkpoints"


class Room(NamedTuple):
    """Bytes that further checkpoints will need on disk, and bytes that are free."""

    needed: int
    free: int


def _in_layout_of(x: Any, like: Any) -> Any:
    """Store an array in the layout of `like`, if it has one."""
    wanted = like.format
    return x if wanted.layout in (None, x.format.layout) else jax.device_put(x, wanted, donate=True)


class Checkpointer:
    """Checkpoints under `workdir/checkpoints/STEP`, saved in the background and restored onto any mesh.

    A step gets its name when it is completely on disk, with a manifest with a hash of every file; arrays that do not
    match it are never returned. With several processes, all of them must make the same calls.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int | None = 2,
        read_only: bool = False,
        folder: str = FOLDER,
        logs: Sequence[Path] = (),
    ):
        """Open a run's checkpoints, and remove the files of interrupted saves.

        Args:
            workdir: the run's folder.
            keep: number of newest checkpoints to keep on disk, at least 1; None: all.
            read_only: change nothing on disk, e.g. to sample while the run trains.
            folder: name of the folder in workdir.
            logs: files that are brought to disk before each step gets its name: after a loss of power they hold what
                was written before the step was saved.

        Raises:
            ValueError: keep is less than 1.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(workdir).absolute() / folder
        self.quarantined: list[Path] = []  # damaged steps that this object has renamed
        self._keep, self._read_only, self._logs = keep, read_only, logs
        self._arrays = Arrays()
        self._saving: Saving | None = None
        self._attempts = 0
        self._failed: Exception | None = None  # error of the last finished save
        self._unsaid: Exception | None = None
        self._said_ignored = False
        if not read_only and together.first_process():
            storage.make_folder(self.folder)
            steps.clean_up(self.folder)

    def latest(self) -> int | None:
        """Return the newest checkpoint's step, or None if there is none; wait for a running save.

        Raises:
            Damaged: there are checkpoints, and none has a valid manifest.
        """

        def newest() -> int | None:
            saved = steps.complete(self.folder)
            if not saved and (steps.numbered(self.folder) or steps.set_aside(self.folder)):
                raise self._none_left({})
            return saved[-1] if saved else None

        self._settle()
        return self._first_does(newest)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints with a valid manifest, increasing; wait for a running save."""
        self._settle()
        return self._first_does(lambda: steps.complete(self.folder))

    def room(self, state: Any) -> Room:
        """Return the space that checkpoints of such states will need, and the free space.

        Args:
            state: tree of arrays or `jax.ShapeDtypeStruct`.
        """
        size = sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
        place = self.folder
        while not place.exists():
            place = place.parent
        # The newest is written before the oldest is deleted.
        more = 1 if self._keep is None else max(1, self._keep + 1 - len(steps.complete(self.folder)))
        return Room(more * size, shutil.disk_usage(place).free)

    def save(self, state: Any) -> None:
        """Start to save a state under its step; it may be donated as soon as this returns.

        Errors of the disk, e.g. a full disk, are not raised here: see `failure`.

        Args:
            state: a `TrainState`.

        Raises:
            ValueError: a checkpoint of this or a later step exists, or the checkpointer is read-only.
        """
        step = int(state.step)
        if self._read_only:
            raise ValueError(f"step {step} was not saved: {self.folder} is open for reading only")
        self._settle()
        try:
            saved = together.all_do(self.folder.name, lambda: steps.complete(self.folder))[0]
        except OSError as error:
            self._failed = self._unsaid = error
            return
        if step in saved or (self._keep is not None and saved and step < saved[-1]):
            raise ValueError(f"cannot save step {step}: {self.folder} already holds step {saved[-1]}")
        self._attempts += 1
        self._saving = Saving(
            self._arrays, self.folder, step, trees.flatten(state),
            keep=self._keep, attempt=self._attempts, logs=self._logs,
        )  # fmt: skip
        self._saving.copied()

    def failure(self) -> Exception | None:
        """Return the error of a failed save, once; None if none has failed since the last call."""
        saving = self._saving
        if saving is not None and self._first_does(saving.ended):
            self._settle()
        unsaid, self._unsaid = self._unsaid, None
        return unsaid

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Read a state, saved from any mesh, with the shardings of `like`.

        If the newest checkpoint is damaged, rename it to `quarantine-STEP` (unless read-only), print a line on stderr,
        and read the one before it.

        Args:
            like: tree of arrays or `jax.ShapeDtypeStruct` with shardings, e.g. `state.state_shapes(...)`; where one has
                a layout, too, the array is stored in it.
            step: step of the checkpoint; None: the newest undamaged one.

        Returns:
            a tree of arrays like `like`, bitwise equal to the saved ones.

        Raises:
            Damaged: the checkpoint is damaged, or all are.
            ValueError: there is no such checkpoint, or its arrays differ from `like` in name, shape or dtype; the
                message lists the differences, nothing is cast.
        """
        expected = trees.flatten(like)

        def all_of_it(place: Path, saved: Described) -> Described:
            differences = flat.differences(saved, expected)
            if differences:
                raise ValueError(f"checkpoint {place} does not fit:\n  {listed(differences, between=chr(10) + '  ')}")
            return expected

        return jax.tree.map(_in_layout_of, flat.unflatten_like(like, self._load(step, all_of_it)), like)

    def restore_params(self, which: str, step: int | None = None, *, mesh: Mesh | None = None) -> Any:
        """Read a part of a state, as a nested dict.

        Args:
            which: e.g. "params", "ema" (the first of several averages) or "ema/1".
            step: step of the checkpoint; None: the newest undamaged one, as for `restore`.
            mesh: mesh of the arrays; None: the default device.

        Raises:
            Damaged: the checkpoint is damaged, or all are.
            ValueError: there is no such checkpoint, or it has no such part.
        """
        prefix = ""

        def one_part(place: Path, saved: Described) -> Described:
            nonlocal prefix
            prefix = flat.prefix(saved, which)
            part = trees.nest({n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)})
            if not part:
                raise ValueError(f"checkpoint {place} has no {which!r}")
            places = jax.tree.map(lambda x: None, part) if mesh is None else shard_params(part, mesh)
            describe = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
            return {prefix + name: x for name, x in trees.flatten(jax.tree.map(describe, part, places)).items()}

        arrays = self._load(step, one_part)
        return trees.nest({name.removeprefix(prefix): x for name, x in arrays.items()})

    def wait(self) -> None:
        """Wait until everything is on disk; raise the error of the last save, if it failed."""
        self._settle()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Close the checkpoints, after `wait`."""
        self.wait()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self.close() if kind is None else self._settle()

    def _settle(self) -> None:
        """Wait for a running save, and store its error."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            self._failed = saving.result()
            self._unsaid = self._failed or self._unsaid

    def _first_does(self, act: Callable[[], Any]) -> Any:
        return together.first_does(self.folder.name, act)

    def _load(self, step: int | None, choose: Choose) -> dict[str, Any]:
        """Read the arrays that `choose` returns, of the given step or the newest undamaged one."""
        self._settle()
        bad: dict[int, str] = {}
        while True:
            number = self._first_does(lambda: self._newest(step, bad))
            place = self.folder / str(number)
            try:
                return read(self._arrays, place, choose)
            except Damaged as error:
                if not self._first_does(place.is_dir):
                    continue  # a training process has deleted it meanwhile
                if step is not None:
                    others = listed(str(other) for other in self.steps() if other != step) or "none"
                    raise Damaged(f"checkpoint {place} is damaged ({error}); others: {others}") from None
                bad[number] = str(error)
                self._pass_over(number, str(error))

    def _newest(self, step: int | None, bad: Mapping[int, str]) -> int:
        numbers = steps.numbered(self.folder)
        if step is not None:
            if step not in numbers:
                others = listed(map(str, steps.complete(self.folder))) or "none"
                raise ValueError(f"no checkpoint {step} in {self.folder}; it holds {others}")
            return step
        self._say_ignored()
        left = [number for number in numbers if number not in bad]
        if left:
            return left[-1]
        if bad or steps.set_aside(self.folder):
            raise self._none_left(bad)
        raise ValueError(f"no checkpoint in {self.folder}: none has been saved yet")

    def _pass_over(self, number: int, why: str) -> None:
        """Rename a damaged step, unless read-only, and print a line."""
        if self._read_only:
            self._say(f"checkpoint {self.folder / str(number)} is damaged ({why}): passed over")
            return
        aside = self._first_does(lambda: str(steps.quarantine(self.folder, number)))
        self.quarantined.append(Path(aside))
        self._say(f"checkpoint {self.folder / str(number)} is damaged ({why}): set aside as {Path(aside).name}")

    def _none_left(self, bad: Mapping[int, str]) -> Damaged:
        reasons = [f"{number}: {why}" for number, why in bad.items()]
        reasons += [f"{number} has no good manifest" for number in steps.numbered(self.folder) if number not in bad]
        reasons += [name for name in steps.set_aside(self.folder) if self.folder / name not in self.quarantined]
        return Damaged(
            f"no checkpoint in {self.folder} is intact ({listed(reasons, max_names=4, between='; ')}); "
            "to start again, move that folder away"
        )

    def _say_ignored(self) -> None:
        ignored = [f"{name} ({why})" for name, why in steps.ignored(self.folder).items() if name[0] != "."]
        if ignored and not self._said_ignored:
            self._say(f"{self.folder} holds more than steps: {listed(ignored)}")
        self._said_ignored = True

    def _say(self, text: str) -> None:
        if together.first_process():
            print(f"jaxdiff: {text}", file=sys.stderr)


def load_params(
    workdir: str | os.PathLike[str],
    which: Literal["ema", "params"] = "ema",
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Load a run's parameters for sampling, without its optimizer.

    Args:
        workdir: the run's folder.
        which: the moving average, or the parameters of the optimizer.
        step: step of the checkpoint; None: the newest undamaged one.
        mesh: mesh of the arrays; None: the default device.

    Returns:
        nested dict of arrays.

    Raises:
        Damaged: the checkpoint is damaged, or all are.
        ValueError: there is no such checkpoint.
    """
    if which not in ("ema", "params"):
        raise ValueError(f"which must be 'ema' or 'params', got {which!r}")
    if not (Path(workdir) / FOLDER).is_dir():
        raise ValueError(f"{workdir} is not a run: it has no folder {FOLDER!r}")
    with Checkpointer(workdir, read_only=True) as checkpointer:
        return arranged(jax.tree.map(jnp.asarray, checkpointer.restore_params(which, step, mesh=mesh)))
