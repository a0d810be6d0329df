"""Saving of one checkpoint: copied from the devices immediately; written, hashed and named in the background."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import jax

from jaxdiff import storage
from jaxdiff.train.checkpoint import manifest, steps, together
from jaxdiff.train.checkpoint.arrays import Arrays, own_part, storage_error

STATE = "state"  # name of the arrays' folder in that of a step


class Saving:
    """A running save. Each process writes its arrays; the first one creates the folder and names the step."""

    def __init__(
        self,
        arrays: Arrays,
        folder: Path,
        step: int,
        flat: dict[str, Any],
        *,
        keep: int | None,
        attempt: int,
        logs: Sequence[Path] = (),
    ):
        """Start the save.

        Args:
            arrays: the writer.
            folder: folder of the steps.
            step: number of the step.
            flat: name -> array.
            keep: number of newest steps to keep; None: all.
            attempt: a different number for each save.
            logs: files to bring to disk before the step gets its name.
        """
        self._arrays, self._folder, self._step, self._keep, self._logs = arrays, folder, step, keep, logs
        self._place = steps.place(folder, step, attempt)
        self._described = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items()}
        self._copied: Future[None] = Future()
        self._failure: Exception | None = None
        self._thread = Thread(target=self._run, args=(flat,), name=f"save step {step}")
        self._thread.start()

    def copied(self) -> None:
        """Wait until the arrays may be donated.

        Raises:
            Exception: they cannot be saved at all; errors of the disk are returned by `result`.
        """
        self._copied.result()

    def ended(self) -> bool:
        """Whether the save has ended."""
        return not self._thread.is_alive()

    def result(self) -> Exception | None:
        """Wait for the end, and return the error, or None."""
        self._thread.join()
        return self._failure

    def _run(self, flat: dict[str, Any]) -> None:
        try:
            self._write(flat)
        except Exception as error:
            self._failure = _without_arrays(error)
            if together.first_process():
                shutil.rmtree(self._place, ignore_errors=True)  # if something is left, the next start removes it
        if not self._copied.done():
            at_once = self._failure if not isinstance(self._failure, OSError) else None
            self._copied.set_exception(at_once) if at_once else self._copied.set_result(None)

    def _write(self, flat: dict[str, Any]) -> None:
        first = together.first_process()
        self._all_do(lambda: self._make_place() if first else None)
        parts = self._all_do(lambda: self._write_own(flat))
        self._all_do(lambda: self._publish(parts) if first else None)
        if first and self._keep is not None:
            self._delete(steps.complete(self._folder)[: -self._keep])

    def _make_place(self) -> None:
        """Create the folder, unless the disk has no room for another step like the last one."""
        storage.make_folder(self._folder)
        saved = steps.complete(self._folder)
        last = manifest.read(self._folder / str(saved[-1])).files if saved else {}
        needed, free = sum(file.size for file in last.values()), shutil.disk_usage(self._folder).free
        if free < needed:
            message = f"{os.strerror(errno.ENOSPC)} ({needed} bytes are needed, {free} are free)"
            raise OSError(errno.ENOSPC, message, str(self._folder / str(self._step)))
        (self._place / STATE).mkdir(parents=True)

    def _write_own(self, flat: dict[str, Any]) -> dict[str, manifest.File]:
        """Write this process's arrays, and return its files."""
        writing = self._arrays.start(self._place / STATE, flat)
        flat.clear()  # frees the devices' memory for training
        self._copied.set_result(None)
        for part in writing:
            part.result()
        names = manifest.files_of(self._place / STATE)
        written = [f"{STATE}/{name}" for name in names if own_part(name, jax.process_index())]
        return manifest.seal(self._place, written)

    def _publish(self, parts: list[Mapping[str, Any]]) -> None:
        self._arrays.finish(self._place / STATE)
        sealed = {name: manifest.File(*file) for part in parts for name, file in part.items()}
        rest = set(manifest.files_of(self._place)) - sealed.keys()
        manifest.write(self._place, self._step, self._described, sealed | manifest.seal(self._place, rest))
        for log in self._logs:
            with contextlib.suppress(OSError):  # a log that fails does not matter to a checkpoint
                storage.sync(log)
        steps.publish(self._place, self._folder, self._step)

    def _delete(self, old: list[int]) -> None:
        for step in old:
            try:
                steps.remove(self._folder, step)
            except OSError as error:
                print(f"jaxdiff: {self._folder / str(step)} was not deleted: {error}", file=sys.stderr)

    def _all_do(self, act: Any) -> list[Any]:
        def as_storage() -> Any:
            try:
                return act()
            except Exception as error:
                raise storage_error(error, self._folder / str(self._step)) from None

        return together.all_do(f"{self._folder.name}/save", as_storage)


def _without_arrays(error: Exception) -> Exception:
    """Free the variables of an exception's frames, which hold copies of the state."""
    inner: BaseException | None = error
    while inner is not None:
        traceback.clear_frames(inner.__traceback__)
        inner = inner.__context__
    return error
