"""A watchdog for processes that make no progress."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

import jax

from jaxdiff.faults import AGAIN


class Watchdog:
    """Watchdog that ends the process with status 75 and a traceback of each thread if `beat` is not called in time.

    If a process hangs or ends, the others wait within a collective for ever (jax#38503), where no exception can be
    raised.

    Attributes:
        doing: the current activity, which distinguishes the process that hangs from those that wait for it.
    """

    def __init__(self, seconds: float | None):
        """Watch a `with` block.

        Args:
            seconds: maximum time between calls of `beat`; None: no watch.

        Raises:
            ValueError: seconds is not positive.
        """
        if seconds is not None and not seconds > 0:
            raise ValueError(f"a watchdog's seconds must be positive, got {seconds}")
        self.doing = ""
        self._seconds = seconds
        self._allowed, self._deadline = 0.0, float("inf")
        self._over = threading.Event()

    def beat(self, times: float = 1) -> None:
        """Report progress.

        Args:
            times: factor of the maximum time until the next call.
        """
        if self._seconds is not None:
            self._allowed = times * self._seconds
            self._deadline = time.monotonic() + self._allowed

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._process = jax.process_index()  # now, since a backend that hangs might not return it
            self.beat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        # With several processes the watch continues after an exception: closing files may wait for the others.
        if kind is None or jax.process_count() == 1:
            self._over.set()
        else:
            self.beat()

    def _watch(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if self._over.wait(min(left, 1.0)):  # in short waits, since a beat may bring the deadline nearer
                return
        where = f" ({self.doing})" if self.doing else ""
        what = f"process {self._process} has made no progress for {self._allowed:g} s{where}"
        print(f"jaxdiff: {what}, and ends with status {AGAIN}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2)  # a notebook's sys.stderr is no file
        os._exit(AGAIN)
