"""Train the toy in a process of its own: resume.py WORKDIR STEPS MESH."""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["NPROC"] = "32"
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from helpers import toy

from jaxdiff import data, train


def images(start):
    for batch in data.batches(data.open_dataset("fashion_mnist"), 16, seed=5, start=start):
        yield {"x": np.ascontiguousarray(batch["x"][:, 14, :8, 0])}


def main(workdir, steps, where):
    mesh = toy.mesh(where)
    state = train.init_state(toy.init, toy.ADAMW, jax.random.key(0), mesh)
    step = train.make_step(toy.noisy_loss, toy.ADAMW, key=jax.random.key(1), ema=train.ema.warmup(0.9))
    with train.Checkpointer(workdir) as checkpointer:
        if checkpointer.latest() is not None:
            state = checkpointer.restore(state)
        start = int(state.step)
        log = train.jsonl_logger(Path(workdir) / "metrics.jsonl", start)
        train.fit(step, state, images(start), steps=steps, mesh=mesh, checkpointer=checkpointer, log=log)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
