"""A lock on a run's folder, for one writer at a time, also on a file system shared by several machines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff import faults, storage

__all__ = ["FILE", "Lock", "hold"]

FILE = ".lock"
BEAT = 10.0  # seconds between heartbeats of the holder
SILENCE = 60.0  # seconds without a heartbeat, after which a holder on another machine counts as dead
_SIZE = 4096  # bytes of the note in the file: written by one call, so that no reader gets half of one
# Errors of file systems without such locks, where the heartbeats must suffice.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_open: set[int] = set()  # closed in forked children, which would hold the lock beyond the end of their parent


def _close_in_child() -> None:
    for handle in _open:
        with contextlib.suppress(OSError):
            os.close(handle)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """An exclusive lock on writing to a folder, for a `with` block.

    The kernel holds the lock (flock) and releases it however the process ends, so that a killed process never blocks
    the next one on the same machine. For file systems that do not share locks between machines, the holder updates the
    file's time every `BEAT` seconds: another process takes over the lock of another machine if its time has not changed
    for `SILENCE` seconds of the local clock. If two processes take it over simultaneously, the last to write its note
    gets the lock, and the other one ends when it reads that note; so does a holder that was suspended until it lost its
    lock.
    """

    def __init__(self, folder: str | os.PathLike[str], *, what: str = "training"):
        """Describe a lock.

        Args:
            folder: the folder to lock; created if missing.
            what: activity of this process, for the error message of another one.
        """
        self._folder = Path(folder)
        self._path = self._folder / FILE
        self._what = what
        self._note: dict[str, Any] = {}
        self._handle: int | None = None
        self._made = False
        self._over = threading.Event()

    def __enter__(self) -> Lock:
        """Take the lock.

        Raises:
            ValueError: another process holds the lock; the message has its id, its host and its duration.
            OSError: the folder cannot be written.
        """
        self._made = not self._folder.exists()
        while self._handle is None:
            handle, locked = self._take()
            try:
                holder = _read(handle)
                if not holder or (locked and holder.get("machine") == _machine()) or self._is_silent(holder):
                    self._sign(handle, locked)
                    self._handle = handle
                    _open.add(handle)
            finally:
                if self._handle is None:
                    os.close(handle)
        self._over.clear()
        threading.Thread(target=self._live, name="lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        handle, self._handle = self._handle, None
        if handle not in _open:
            return  # a forked child, which has closed it
        self._over.set()
        # Removed while it is locked: a process that has opened it detects the removal, and opens a new file.
        with contextlib.suppress(OSError):
            if self._holds():
                self._path.unlink()
        _open.discard(handle)
        os.close(handle)
        if self._made:
            with contextlib.suppress(OSError):  # unless the folder has content
                self._folder.rmdir()

    def _take(self) -> tuple[int, bool]:
        """Open and lock the file; return its handle and whether the file system has locks."""
        while True:
            try:
                storage.make_folder(self._folder)
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                continue  # its last holder has removed the folder, which was empty
            except FileExistsError:  # so it has, after `mkdir` has met it; or it is no folder
                if self._folder.exists() and not self._folder.is_dir():
                    raise
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(handle)
                os.close(handle)
                raise self._refusal(holder) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(handle)
                    raise
                return handle, False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                    return handle, True
            os.close(handle)  # its last holder has removed it

    def _is_silent(self, holder: dict[str, Any]) -> bool:
        """Watch a holder without a kernel lock: True if it sends no heartbeat, False when it ends."""
        watched = f"{self._folder} was locked by {_described(holder)}; watching for {SILENCE:g} s whether that lives"
        print(f"jaxdiff: {watched}", file=sys.stderr, flush=True)
        first, end = _state(self._path), time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT / 4))
            now = _state(self._path)
            if now is None:
                return False
            if now != first:
                raise self._refusal(now[1])
        return True

    def _sign(self, handle: int, locked: bool) -> None:
        self._note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "what": self._what}
        self._note |= {"machine": _machine(), "token": secrets.token_hex(8)}
        try:
            os.pwrite(handle, json.dumps(self._note).encode().ljust(_SIZE), 0)
            os.fsync(handle)
        except OSError:
            # On a full disk the kernel's lock still holds; only the note for other processes is missing.
            if not locked:
                raise
            os.ftruncate(handle, 0)

    def _refusal(self, holder: dict[str, Any]) -> ValueError:
        return ValueError(
            f"{self._folder} is in use by {_described(holder)}: wait for its end, end it, or choose another folder"
        )

    def _holds(self) -> bool:
        """Whether the file has no other process's note."""
        _, note = _state(self._path) or (0, {})
        return not note or note.get("token") == self._note["token"]

    def _live(self) -> None:
        """Send heartbeats, and end the process if another one has taken the lock."""
        pause = min(1.0, BEAT)  # after which one of two simultaneous processes has the lock
        while not self._over.wait(pause):
            pause = BEAT
            try:
                holds = self._holds()
                if holds:
                    os.utime(self._path)
            except OSError:  # the disk may be full, read-only or unavailable for a while
                continue
            if not holds and not self._over.is_set():
                _, note = _state(self._path) or (0, {})
                print(f"jaxdiff: {self._refusal(note)}", file=sys.stderr, flush=True)
                os._exit(faults.MISTAKE)


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a run's folder for all its processes: the first one takes the lock, and all raise its error.

    Args:
        workdir: the run's folder.

    Raises:
        ValueError: as for `Lock`.
        OSError: as for `Lock`, in the first process.
    """
    error: BaseException | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(Lock(workdir))
            except (ValueError, OSError) as failure:
                error = failure
        if jax.process_count() > 1:
            words = np.frombuffer(str(error or "").encode()[:_SIZE].ljust(_SIZE), np.uint8)
            message = bytes(multihost_utils.broadcast_one_to_all(words)).decode(errors="ignore").strip()
            if message and error is None:
                raise ValueError(message)
        if error is not None:
            raise error
        yield


def _machine() -> str:
    """Id shared by all processes of one kernel, unlike the host name of a container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read(handle: int) -> dict[str, Any]:
    """Note in a lock's file; empty if there is none."""
    try:
        note = json.loads(os.pread(handle, _SIZE, 0) or b"{}")
    except ValueError:
        return {"machine": None}  # of an unknown process
    return note if isinstance(note, dict) else {"machine": None}


def _state(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Last heartbeat and note, of the reopened file: over a network an open file may be stale."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(handle).st_mtime_ns, _read(handle)
    finally:
        os.close(handle)


def _described(holder: dict[str, Any]) -> str:
    try:
        seconds = max(0.0, time.time() - float(holder["since"]))
        return f"process {int(holder['pid'])} on {holder['host']}, {holder['what']} for {_duration(seconds)}"
    except (KeyError, TypeError, ValueError):
        return "another process"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
