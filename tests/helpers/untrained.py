"""A run without training."""

import shutil
from pathlib import Path

import jax

from jaxdiff import train
from jaxdiff.recipe import load
from jaxdiff.script import SOURCE


def untrained(workdir: Path, path: Path, **knobs) -> None:
    """A run whose parameters are those it would begin with."""
    experiment = load(path)(**knobs)
    train.write_knobs(workdir, knobs)
    shutil.copyfile(path, workdir / SOURCE)
    mesh = train.make_mesh(devices=jax.devices()[:1])
    with train.Checkpointer(workdir) as checkpointer:
        checkpointer.save(
            train.init_state(experiment.model.init, experiment.training.optimizer, jax.random.key(0), mesh)
        )
