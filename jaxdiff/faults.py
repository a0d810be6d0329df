"""Failures that end a program, and their exit statuses, which schedulers can distinguish."""

from __future__ import annotations

import errno

__all__ = ["AGAIN", "DAMAGE", "DONE", "MISTAKE", "NUMBERS", "STORAGE", "Damaged", "NotFinite", "status"]

DONE = 0
MISTAKE = 2  # the user's input is invalid
NUMBERS = 3  # losses, gradients or updates were not finite too often
DAMAGE = 4  # files differ from what was written, and there are no older ones
STORAGE = 5  # the disk is full, over quota, read-only or broken
AGAIN = 75  # stopped by a signal or by another process: the same command resumes (EX_TEMPFAIL of sysexits.h)

_STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EFBIG,
    errno.ESTALE,
    errno.ENODEV,
    errno.ETIMEDOUT,
}


class NotFinite(ValueError):
    """NaN or infinity occurred too often to continue training."""


class Damaged(ValueError):
    """A file differs from what was written."""


def status(error: BaseException) -> int:
    """Return the exit status of a program for an error whose message explains it.

    Args:
        error: the error that ends the program.
    """
    if isinstance(error, NotFinite):
        return NUMBERS
    if isinstance(error, Damaged):
        return DAMAGE
    return STORAGE if isinstance(error, OSError) and error.errno in _STORAGE else MISTAKE
