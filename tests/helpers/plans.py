"""A small experiment to plan, `jaxdiff plan` of it, and of others what precedes the compiler."""

import json
from functools import cache
from unittest import mock

import pytest

from jaxdiff.cli import main
from jaxdiff.cli.plan import plan_one
from jaxdiff.plan import compiling, topology
from jaxdiff.plan.cache import Compiled
from jaxdiff.planning import planning

EXPERIMENT = '''
import numpy as np
import jaxdiff as jd
from jaxdiff import conditions, media, models, networks, train
from jaxdiff.experiment import Experiment, Sampling, Training

def experiment(batch: int = 32, width: int = 64, grad_accum_steps: int = 1) -> Experiment:
    """A small network of points.

    Args:
        batch: points.
        width: units.
        grad_accum_steps: microbatches.
    """
    process, velocity = jd.processes.Flow(), jd.parameterize.velocity
    medium, condition = media.points(), conditions.none()
    model = models.of(networks.MLP(width=width), process, velocity, shape=medium.shape, condition=condition)

    def batches(start):
        while True:
            yield {"x": np.ones((batch, 2), np.float32)}

    learning = Training(
        loss=jd.losses.denoising_loss(model.apply, process, model.prediction), optimizer=train.adamw(1e-3),
        ema=train.ema.constant(0.9), batches=batches, batch=batch, steps=3, grad_accum_steps=grad_accum_steps,
    )
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.heun(), steps=4)
    return Experiment(model, learning, sampling, condition, medium, seed=0)
'''


def plan(path, *options):
    """What the command writes about the experiment at a path."""
    out = path.with_suffix(".json")
    main(["plan", str(path), *options, "--json", str(out)])
    return json.loads(out.read_text())


@cache
def described():
    """Chips that no machine of ours has: an experiment that is built for them may put no array there."""
    pytest.importorskip("libtpu")
    return topology("v5e:2x2")


def can_be_planned(build, **knobs):
    """Holds that the train step of an experiment is built, traced and lowered for described chips."""
    with uncompiled() as compiler, planning():
        told = plan_one(build, knobs, described(), "", name="tiny", sample=False)
    compiler.assert_called_once()
    assert told.model_flops > 0


def uncompiled():
    """Within, programs are lowered but not compiled, which costs several times as much, and is up to XLA."""
    return mock.patch.object(compiling, "cached", return_value=Compiled(1, None, "", "", 0.0))
