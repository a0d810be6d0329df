"""What ends a program: kinds of failures, and the statuses by which a scheduler tells them apart."""

from __future__ import annotations

import errno

__all__ = ["AGAIN", "DAMAGE", "DONE", "MISTAKE", "NUMBERS", "STORAGE", "Damaged", "NotFinite", "status"]

DONE = 0
MISTAKE = 2  # what a person gave cannot be done
NUMBERS = 3  # loss, gradient or update were not finite too often
DAMAGE = 4  # what is on disk is not what was written, and there is nothing older
STORAGE = 5  # the disk is full, over quota, read-only or broken
AGAIN = 75  # stopped from outside or by a peer: the same command goes on (EX_TEMPFAIL of sysexits.h)

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
    """Training met NaN or infinity too often to go on."""


class Damaged(ValueError):
    """A file is not what was written."""


def status(error: BaseException) -> int:
    """Return the status that a program ends with for an error that a sentence explains.

    Args:
        error: what ended it.
    """
    if isinstance(error, NotFinite):
        return NUMBERS
    if isinstance(error, Damaged):
        return DAMAGE
    return STORAGE if isinstance(error, OSError) and error.errno in _STORAGE else MISTAKE
