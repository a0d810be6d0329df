"""Handling of SIGTERM and Ctrl-C: a program saves its state, then exits with status 75."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxdiff.faults import AGAIN

__all__ = ["Signals", "Stopped"]

NUMBERS = (signal.SIGTERM, signal.SIGINT)
# Seconds for a program with nothing to save to close its files, or to return from a compiler.
GRACE = 5.0


class Stopped(SystemExit):
    """Exit after a signal, with the status of a command that can be resumed."""

    def __init__(self, signal: str):
        super().__init__(AGAIN)
        self.signal = signal


class Signals:
    """Handlers of SIGTERM and SIGINT in a `with` block of the main thread: the first signal requests the program's end.

    With nothing to save, `Stopped` is raised. A loop with something to save calls `unsaved`, checks `received` when it
    can save, and makes its long waits interruptible by `raising`.

    Attributes:
        received: the first signal's name, or None.
        doing: the activity that a second signal would interrupt, for the message.
        since: time of construction, by `time.monotonic`; about the start of a command.
    """

    def __init__(self, *, ends: bool = False):
        """Prepare the handlers.

        Args:
            ends: whether the program is a command, which signals may end at any time, also while Python does not run:
                after a few seconds with nothing to save, otherwise at a second Ctrl-C. In a library (False) nothing is
                raised outside `raising`, and a second Ctrl-C raises KeyboardInterrupt.
        """
        self.received: str | None = None
        self.doing, self.since = "", time.monotonic()
        self._ends, self._raises = ends, ends
        self._unsaved, self._many = False, False
        self._old: dict[int, Any] = {}
        self._outer: Signals | None = None

    def unsaved(self, is_so: bool) -> None:
        """Set whether something is unsaved; if so, a signal only sets `received`."""
        self._unsaved, self._raises = is_so, self._ends and not is_so

    def many(self) -> None:
        """Leave SIGTERM and Ctrl-C to JAX's handler, with which all processes of a run agree on a step.

        Called before the block by a process that has joined the others, after which that handler must stay; within the
        block by one that joins them there.
        """
        self._many = True

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise `Stopped` within a `with` block for a signal that arrives, or has arrived before."""
        before, self._raises = self._raises, not self._many
        try:
            if self.received and self._raises:
                raise Stopped(self.received)
            yield
        except Exception as error:
            # Schedulers and terminals signal all processes: data workers may end before this one.
            if self.received and self._raises:
                raise Stopped(self.received) from error
            raise
        finally:
            self._raises = before

    def __enter__(self) -> Signals:
        global _active
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        self._outer, _active = _active, self
        if self._ends:
            # The socket receives the signal's number immediately, also while the main thread is in a compiler.
            self._read, self._write = socket.socketpair()
            self._write.setblocking(False)
            self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
        for number in (signal.SIGINT,) if self._many else NUMBERS:
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        if not self._old:
            return
        self._close()
        if self._ends:
            self._write.close()  # the watching thread then ends
        self._old, _active = {}, self._outer

    def _close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._ends:
            signal.set_wakeup_fd(self._old_wakeup)

    def _handle(self, number: int, frame: Any) -> None:
        first, self.received = self.received is None, self.received or signal.Signals(number).name
        if self._many and first:
            os.kill(os.getpid(), signal.SIGTERM)
        elif first and self._raises:
            raise Stopped(self.received)
        elif not first and not self._ends and number == signal.SIGINT:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        with self._read:
            for count, number in enumerate(self._numbers()):
                if count and number == signal.SIGINT:
                    self._end(f"interrupted again: {self.doing or 'the end'} is aborted; earlier saves are intact")
                if count:
                    self._say(f"{self.doing or 'ending'}: waiting for its end; Ctrl-C aborts it")
                if not self._unsaved and not self._many and not self._comes(GRACE):
                    self._end("ends at once: there is nothing to save, and nothing was lost")

    def _numbers(self) -> Iterator[int]:
        """Yield the signals that arrive, each once."""
        while number := self._read.recv(1):
            more = b""
            if number[0] in NUMBERS and self.received is None and not self._comes(0.1) and self.received is None:
                # The kernel may have delivered it to another thread, while the main thread, the handler, sleeps.
                signal.pthread_kill(threading.main_thread().ident, number[0])  # type: ignore[arg-type]
                more = self._read.recv(1) if self._comes(0.2) else b""  # the same signal, a second time
            yield from (each for each in number + more.replace(number, b"") if each in NUMBERS)

    def _comes(self, seconds: float) -> bool:
        """Whether another signal, or the end of the block, arrives within a number of seconds."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def _say(self, what: str) -> None:
        print(f"jaxdiff: {what}", file=sys.stderr, flush=True)

    def _end(self, what: str) -> None:
        self._say(what)
        sys.stdout.flush()
        os._exit(AGAIN)


_active: Signals | None = None


def _hold_back() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)


def _let_go() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def _forked() -> None:
    # A child, e.g. a data worker, shares the socket: its signals must not reach the parent's thread.
    if _active is not None:
        _active._close()
    _let_go()


os.register_at_fork(before=_hold_back, after_in_parent=_let_go, after_in_child=_forked)
