"""What methods make of a teacher that was never trained, at the ends of their ranges."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_points

from jaxdiff import conditions, distill, few_steps, networks, train
from jaxdiff.experiment import UserError
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


def test_progressive_has_as_many_updates_in_each_stage(teacher):
    for steps, given, words in (
        (1, 2, "4 stages .* multiple of 4, such as 4, got 2"),
        (2, 1000, "3 stages .* multiple of 3, such as 999 or 1002, got 1000"),
    ):
        with pytest.raises(UserError, match=words):
            few_steps.choose(teacher, replace(KNOBS, steps=given), "progressive", guidance=None, steps=steps)
    assert few_steps.METHODS["progressive"](teacher, replace(KNOBS, steps=999), 2).stage_updates == 333


def test_a_shortcut_is_drawn_in_the_steps_that_it_has_learned(teacher):
    plain = few_steps.METHODS["shortcut"](teacher, KNOBS, 32).sampling
    np.testing.assert_allclose(plain.grid(4).t, [1, 0.75, 0.5, 0.25, 0])
    assert plain.grid(32).t.shape == (33,)
    condition = conditions.label(3)
    guided = replace(teacher, guidance=2.0, experiment=replace(teacher.experiment, condition=condition))
    with pytest.raises(UserError, match=r"without guidance: sample_steps must be at most 16 .* got 32"):
        few_steps.METHODS["shortcut"](guided, KNOBS, 32)
    for sampling, steps in ((plain, 3), (few_steps.METHODS["shortcut"](guided, KNOBS, 16).sampling, 32)):
        with pytest.raises(ValueError, match=f"steps divide .* got {steps}"):
            sampling.grid(steps)


def test_a_progressive_student_is_the_teacher_of_the_next_stage(teacher, monkeypatch):
    """The average that is the student at the end of the last stage, not the one that is drawn."""
    original, apply = distill.progressive, lambda params, x, noise, cond: params * x
    first = {"teacher": lambda *_: lambda x, level: 0.5 * x}
    monkeypatch.setattr(distill, "progressive", lambda _, *args, **options: original(apply, *args, **options | first))
    made = few_steps.METHODS["progressive"](teacher, replace(KNOBS, steps=8), 4)
    averages, seen = train.ema.init(jnp.float32(0), made.ema), []
    for step in range(8):
        averages = train.ema.update_all(averages, jnp.float32(step + 1), made.ema, jnp.int32(step))
        seen.append(float(averages[1]))
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8] and made.stage_updates == 4

    @jax.jit
    def value(drawn, student):
        context = distill.Context(jnp.int32(4), (drawn, student), None)
        return made.loss((jnp.float32(0.1), context), jax.random.key(0), {"x": jnp.ones((2, 2))})[0]

    assert value(0.2, 0.3) == value(0.4, 0.3) != value(0.2, 0.5)


def test_a_network_that_rounds_the_time_has_no_derivative(teacher):
    network = networks.UNet(time=networks.LearnedTimes(10))
    model = replace(teacher.experiment.model, network=network)
    rounding = replace(teacher, experiment=replace(teacher.experiment, model=model))
    with pytest.raises(UserError, match=r"that of tiny rounds it, .* semigroup or consistency"):
        few_steps.METHODS["lagrangian"](rounding, KNOBS, 1)
    few_steps.METHODS["eulerian"](rounding, KNOBS, 1)  # by a difference
