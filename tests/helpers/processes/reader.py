"""A process that reads by workers, and tells of them: what it has read, who they are, and how one's death shows."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import sys
import time

import numpy as np

from jaxdiff import data

SIZE, START, COUNT = 8, 5, 6
ROWS = range(4, 8)  # of the second of two hosts
SOURCE = data.ArraySource(
    np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8), np.arange(40, dtype=np.int32) % 4, 4
)


def stream(workers, rows=None, start=START):
    return data.batches(SOURCE, SIZE, seed=3, start=start, flip=True, workers=workers, rows=rows)


def digest(batches):
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            found.update(batch[name].tobytes())
    return found.hexdigest()


def main():
    opened = stream(2, ROWS)
    print(digest(itertools.islice(opened, COUNT)), flush=True)
    workers = multiprocessing.active_children()
    os.kill(workers[0].pid, signal.SIGKILL)
    try:
        for _ in range(1000):
            next(opened)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    opened = stream(1)
    next(opened)
    print(*(child.pid for child in multiprocessing.active_children() if child not in workers), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    sys.exit(main())
