"""Runs without training."""

import shutil
from pathlib import Path

import jax
import pytest

from jaxdiff import pretrained, train
from jaxdiff.recipe import load
from jaxdiff.script import SOURCE


def untrained(workdir: Path, path: Path, noise: float = 0.0, **knobs) -> None:
    """A run whose parameters are those it would begin with, and noise: a last layer of zeros hides all before it."""
    experiment = load(path)(**knobs)
    train.write_knobs(workdir, knobs)
    shutil.copyfile(path, workdir / SOURCE)

    def init(key):
        params = experiment.model.init(key)
        if not noise:
            return params
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        return jax.tree.map(lambda x, key: x + noise * jax.random.normal(key, x.shape, x.dtype), params, keys)

    mesh = train.make_mesh(devices=jax.devices()[:1])
    with train.Checkpointer(workdir) as checkpointer:
        checkpointer.save(train.init_state(init, experiment.training.optimizer, jax.random.key(0), mesh))


def unpacked(name: str, workdir: Path) -> None:
    """A run that comes with the package, by one device: of eight, each would write a part, and compile its slices."""
    mesh = train.make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", lambda: mesh)
        pretrained.unpack(name, workdir)
