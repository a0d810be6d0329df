"""Arrays on disk: the only module that uses Orbax."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

# Orbax' index names the process that wrote each part.
_OWN = ("ocdbt.process_{0}/", "array_metadatas/process_{0}")


class Arrays:
    """Writer and reader of flat dicts of arrays; each process writes its part."""

    def __init__(self) -> None:
        self._handler = ocp.PyTreeCheckpointHandler()
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_shown)
        _hide_late_writes()

    def start(self, folder: Path, flat: Mapping[str, jax.Array]) -> list[Any]:
        """Start to write arrays, which may be donated as soon as this returns.

        Args:
            folder: an existing folder.
            flat: name -> array.

        Returns:
            futures of this process's part.
        """
        loop = asyncio.new_event_loop()
        try:
            saving = self._handler.async_save(epath.Path(folder), args=ocp.args.PyTreeSave(dict(flat)))
            return loop.run_until_complete(saving) or []
        finally:
            loop.close()

    def finish(self, folder: Path) -> None:
        """Write one index of the parts of all processes; called in the first process.

        Args:
            folder: folder of the arrays.
        """
        self._handler.finalize(epath.Path(folder))

    def read(self, folder: Path, specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Read arrays.

        Args:
            folder: folder of the arrays.
            specs: name -> shape, dtype and sharding of the arrays to read.
        """
        described = dict(specs)
        how = ocp.checkpoint_utils.construct_restore_args(described)
        args = ocp.args.PyTreeRestore(described, restore_args=how, partial_restore=True)
        return self._handler.restore(epath.Path(folder), args=args)


def own_part(name: str, process: int) -> bool:
    """Whether a file is written by one process only.

    Args:
        name: path of the file below the arrays' folder.
        process: number of the process.
    """
    folder, file = (part.format(process) for part in _OWN)
    return name.startswith(folder) or name == file


def storage_error(error: Exception, path: Path) -> Exception:
    """Convert an error of the disk to an OSError, and return any other as it is.

    Args:
        error: error of a write; TensorStore has a single class, with the cause in its message.
        path: path of the file.
    """
    if isinstance(error, OSError):
        return error
    match = re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(error))
    if match is None:
        return error
    number = int(match[1] or match[2])
    return OSError(number, os.strerror(number), str(path))


@functools.cache
def _hide_late_writes() -> None:
    """Print nothing for writes that end after a failed save; its error, e.g. of a full disk, is reported once.

    Orbax closes its event loop at the first error, and TensorStore reports the ends of the other writes to that loop.
    """
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        trace = unraisable.exc_traceback
        outermost = trace and trace.tb_frame.f_code.co_name  # no Python calls it in TensorStore's threads
        if outermost != "call_soon_threadsafe" or str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether to show a record of Orbax' log, or of asyncio's: exceptions of Orbax are raised here anyway.

    asyncio writes of all tasks that fail after the first, which is the one that is raised.
    """
    trace = record.exc_info[2] if record.exc_info else None
    through = [record.pathname, *(frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))]
    return not (record.exc_info and any("orbax" in path for path in through))
