"""An experiment that trains in a second, for runs in many processes: images through the pipeline, a preview, a mesh."""

import os
import re
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, data, media, train
from jaxdiff.experiment import Experiment, Medium, Model, Sampling, Training

SIDE, HIDDEN = 4, 512


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": 0.2 * jax.random.normal(first, (SIDE * SIDE, HIDDEN)), "bias": jnp.zeros((HIDDEN,))},
        "out": {"kernel": 0.02 * jax.random.normal(second, (HIDDEN, SIDE * SIDE))},
    }


def apply(params, x, noise, cond):
    flat = x.reshape(x.shape[0], -1) + noise[:, None] + cond["label"][:, None].astype(jnp.float32)
    hidden = jnp.tanh(flat @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return (hidden @ params["out"]["kernel"]).reshape(x.shape)


def experiment(
    steps: int = 4,
    batch: int = 16,
    seed: int = 0,
    lr: float = 1e-3,
    preview_every: int = 2,
    fault: str = "",
    drawn: bool = False,
    steps_per_call: int = 1,
) -> Experiment:
    """Flow matching of noise.

    Args:
        steps: updates.
        batch: images in an update.
        seed: of everything.
        lr: learning rate.
        preview_every: steps between two previews.
        fault: what process 1 does before its third batch, "raise" or "hang"; or, "kill", while step 4 is saved.
        drawn: samples are of a medium of its own.
        steps_per_call: updates in a call of the step.
    """
    rng = np.random.default_rng(7)
    images = data.ArraySource(rng.integers(0, 256, (40, SIDE, SIDE, 1), dtype=np.uint8), np.arange(40) % 4, 4)
    process = jd.processes.Flow()

    def kill(event, args):
        # Only this process's part of the checkpoint is on its way: the commit waits for it.
        if event in ("open", "os.mkdir", "os.rename") and re.search(r"/checkpoints/\D*4(\D|$)", str(args[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    if fault == "kill" and jax.process_index() == 1:
        sys.addaudithook(kill)

    def batches(start, rows=None):
        stream = data.batches(images, batch, seed=seed, start=start, rows=rows, flip=True)
        for number, one in enumerate(stream):
            if fault in ("raise", "hang") and jax.process_index() == 1 and number == 2:
                if fault == "raise":
                    raise KeyError("no such image")
                time.sleep(600)
            yield one

    def save(path, samples):
        np.savez(path, x=samples.x)

    shape = (SIDE, SIDE, 1)
    return Experiment(
        model=Model(init, apply, process, jd.parameterize.velocity),
        training=Training(
            jd.losses.denoising_loss(apply, process, jd.parameterize.velocity),
            optimizer=train.adamw(lr),
            ema=train.ema.constant(0.5),
            batches=batches,
            batch=batch,
            steps=steps,
            preview_every=preview_every,
            steps_per_call=steps_per_call,
        ),
        sampling=Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.euler(), steps=3),
        condition=conditions.label(4),
        medium=Medium(shape, save, preview=8) if drawn else media.images(shape, preview=8),
        seed=seed,
    )
