"""The experiment of the soak run: that of tiny.py, larger, with a batch now and then that is not a number.

The environment says how long a batch takes (SOAK_PAUSE, seconds), and names a file (SOAK_STALL): once it is there, the
next batch never comes.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny

from jaxdiff.experiment import Experiment

tiny.HIDDEN = 8192  # a checkpoint is then larger than the log


def experiment(steps: int = 1000) -> Experiment:
    """Flow matching of noise.

    Args:
        steps: updates.
    """
    made = tiny.experiment(steps=steps, preview_every=0)

    def batches(start, rows=None):
        stall = Path(os.environ.get("SOAK_STALL", "/nowhere"))
        for number, batch in enumerate(made.training.batches(start, rows), start):
            time.sleep(float(os.environ.get("SOAK_PAUSE", 0)))
            if stall.exists():
                stall.unlink()
                time.sleep(3600)
            yield batch | {"x": batch["x"] * np.float32(np.nan)} if number % 100 == 50 else batch

    return replace(made, training=replace(made.training, batches=batches))
