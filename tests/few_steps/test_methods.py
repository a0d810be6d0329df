"""What methods make of a teacher that was never trained, at the ends of their ranges."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_points

from jaxdiff import distill, few_steps
from jaxdiff.options import Run

KNOBS = Run(steps=4, batch=8, lr=1e-3, preview_every=0)


@pytest.fixture
def teacher():
    return few_steps.Teacher(Path("tiny"), tiny_points.experiment(), 1.0)


def test_the_first_and_the_last_times_that_are_drawn_have_a_loss(teacher, monkeypatch):
    """A difference of times passes neither end of the process."""
    ends, original = jnp.asarray([1e-4, 1 - 1e-6]), distill.eulerian
    apply = lambda params, x, noise, cond: jnp.sin(params * x)  # noqa: E731  # compiles faster than a network

    def of_a_sine(_, process, prediction, **options):
        return original(apply, process, prediction, **options | {"teacher": lambda *_: lambda x, level: 0.5 * x})

    monkeypatch.setattr(few_steps.Teacher, "times", property(lambda _: lambda key, batch: (ends, jnp.ones(2))))
    monkeypatch.setattr(distill, "eulerian", of_a_sine)
    loss = few_steps.choose(teacher, KNOBS, "eulerian", guidance=None, steps=None).loss
    inputs = jnp.float32(0.3), distill.Context(jnp.int32(0), None, None)
    assert np.isfinite(jax.jit(loss)(inputs, jax.random.key(1), {"x": jnp.ones((2, 2))})[0])
