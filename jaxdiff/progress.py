"""Progress bars, which distinguish compiling from working."""

from __future__ import annotations

from typing import Any

import jax
from tqdm import tqdm


class Progress(tqdm):
    """A bar labelled `compiling` until its first unit is done, and leaves the screen in the end."""

    def __init__(self, what: str, total: int, unit: str, *, compiled: bool = False, disable: bool = False):
        """Show it.

        Args:
            what: the label once the first unit is done.
            total: units.
            unit: name of one.
            compiled: nothing is compiled, so `what` is the label from the beginning.
            disable: show nothing; of many processes the first alone shows something.
        """
        self._what = what
        desc = what if compiled else "compiling"
        hidden = disable or jax.process_index() != 0
        super().__init__(total=total, desc=desc, unit=unit, leave=False, dynamic_ncols=True, disable=hidden)

    def update(self, n: float | None = 1) -> bool | None:
        """Count what is done; the time left does not count the compilation."""
        if self.n == 0 and n and not self.disable:
            self.set_description(self._what, refresh=False)
        shown = super().update(n)
        if self.n == self.total:
            self.refresh()  # the last unit shows, however soon it came after the one before
        return shown


def busy(what: str) -> Any:
    """A line for as long as a `with` block takes, of work without parts to count."""
    return tqdm(desc=what, bar_format="{desc} ...", leave=False, dynamic_ncols=True)
