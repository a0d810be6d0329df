"""Teachers with prompts, an autoencoder, a learned variance and noised conditions: what of them a student learns."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_cascade, tiny_parts

import jaxdiff as jd
from jaxdiff import cascade, distill, few_steps, run, trees
from jaxdiff.drawing import draw
from jaxdiff.experiment import UserError
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Run
from jaxdiff.sampler import conditional

FILE = Path(__file__).parents[2] / "experiments" / "few_steps.py"
KNOBS = Run(steps=4, batch=8, lr=1e-2, preview_every=0)


@pytest.fixture(scope="module")
def original(parts):
    experiment = run.load_run(parts)
    return experiment, run.parameters(experiment, parts)


def student_of(parts, method, **knobs):
    return run.load(FILE)(teacher=str(parts), method=method, **{**KNOBS.__dict__, **knobs})


def inputs_of(student, params):
    return params, distill.Context(jnp.int32(1), params, student.frozen_of_loss())


@pytest.mark.slow
def test_a_loss_sees_the_teacher_as_its_own_sampler_does(parts, original):
    """The mean alone, of the words of each example and of none, guided; of the latents of what the batches hold."""
    experiment, params = original
    teacher = few_steps.load_teacher(str(parts), KNOBS)

    def spy(inputs, key, batch):
        _, context = inputs
        level = experiment.model.process(jnp.full(8, 0.7))
        cond = {name: a for name, a in batch.items() if name != "x"}
        both = {guided: teacher.denoiser(guided=guided)(context, cond)(batch["x"], level) for guided in (True, False)}
        return jnp.zeros(()), {"x": batch["x"], "guided": both[True], "plain": both[False]}

    batch = {name: jnp.asarray(a) for name, a in next(teacher.experiment.training.batches(0)).items()}
    student = student_of(parts, "consistency")
    _, seen = jax.jit(teacher.of_batches(spy))(inputs_of(student, None), jax.random.key(0), batch)
    cond = {name: batch[name] for name in ("ids", "mask")}
    level, merged = experiment.model.process(jnp.full(8, 0.7)), experiment.model.merge_frozen(params)
    of = conditional(experiment.model, experiment.condition, jd.solvers.ddim())
    own = jax.jit(lambda params, c, x: of(params, c)(x, level))
    plain, null = (own(merged, c, seen["x"]) for c in (cond, experiment.condition.without(cond)))
    np.testing.assert_allclose(seen["plain"], plain, rtol=1e-5)
    np.testing.assert_allclose(seen["guided"], null + tiny_parts.GUIDANCE * (plain - null), rtol=1e-4, atol=1e-5)
    assert np.abs(plain - null).min(axis=1).max() > 1e-3  # the words count
    # Latents are 3 times the data, of a standard deviation of 0.1.
    assert 0 < np.abs(seen["x"] - 3 * batch["x"]).max() < 0.6


@pytest.mark.slow
def test_a_student_without_updates_draws_what_its_teacher_draws_in_one_step(parts, original):
    """By the teacher's words, and decoded by the same autoencoder, of which there is one in memory."""
    experiment, params = original
    student = student_of(parts, "semigroup")
    begin, frozen = student.model.pretrained(), student.frozen_of_loss()
    assert not student.model.learned_variance and student.condition.null is None
    assert student.training.of_batches is not None  # of its own students
    teacher = replace(
        experiment, sampling=replace(experiment.sampling, solver=jd.solvers.ddim(), steps=1, guidance=1.0)
    )
    words = ["left", "right up"]
    found = draw(student, begin, 6, words=words, seed=3).x
    np.testing.assert_allclose(found, draw(teacher, params, 6, words=words, seed=3).x, rtol=1e-4, atol=1e-5)
    # A checkpoint has the network alone; what is frozen lies beside the teacher's network, once.
    own = {name for name in trees.flatten(begin) if not name.startswith("next_time_embedding")}
    assert own == set(trees.flatten(params["network"]))
    assert frozen["model"] is student.model.frozen and sorted(frozen["model"]) == ["text", "vae"]
    jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], params["network"])
    jax.tree.map(np.testing.assert_array_equal, frozen["model"]["text"], params["text"])


@pytest.mark.slow
def test_the_mean_of_the_network_alone_is_learned(parts):
    student, rng = student_of(parts, "reflow"), np.random.default_rng(0)
    shake = lambda a: a + 0.2 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    params, context = inputs_of(student, jax.tree.map(shake, student.model.pretrained()))
    batch = {name: jnp.asarray(a) for name, a in next(student.training.batches(0)).items()}
    loss = lambda params, context: student.training.loss((params, context), jax.random.key(0), batch)[0]  # noqa: E731
    found = trees.flatten(jax.device_get(jax.jit(jax.grad(loss))(params, context)))
    assert {name.split("/")[-1] for name, a in found.items() if not np.any(a)} == {"frac"}


def test_a_noised_condition_is_that_of_the_run_and_its_null_keeps_the_picture():
    """Of a cascade's second stage: its picture, noised at a level that is drawn, beside a class that guidance drops."""
    plain = tiny_cascade.experiment()
    condition = replace(plain.condition, null={"label": np.full(1, 2, np.int32)})
    of_batches = lambda loss: cascade.augmented_loss(loss, condition, max_level=0.5)  # noqa: E731
    training = replace(plain.training, of_batches=of_batches)
    teacher = few_steps.Teacher(Path("second"), replace(plain, condition=condition, training=training), 1.0)
    assert {name: leaf.shape for name, leaf in teacher.encoded_spec().items()} == {
        "label": (1,), "concat": (1, 8, 8, 1), "concat_noise": (1,),
    }  # fmt: skip

    def spy(inputs, key, batch):
        return jnp.zeros(()), {"batch": batch, "null": inputs[1].frozen["null_cond"]}

    batch = {name: jnp.asarray(a) for name, a in next(training.batches(0)).items()}
    context = distill.Context(jnp.int32(0), None, {"teacher": {}, "model": None})
    _, seen = teacher.of_batches(spy)((None, context), jax.random.key(0), batch)
    _, own = of_batches(lambda params, key, batch: (jnp.zeros(()), batch))(None, jax.random.key(0), batch)
    assert seen["batch"].keys() == own.keys() and 0 < float(own["concat_noise"].max()) <= 500
    for name, expected in own.items():
        np.testing.assert_array_equal(seen["batch"][name], expected)
        if name != "x":
            np.testing.assert_array_equal(seen["null"][name], 2 if name == "label" else expected)
    with pytest.raises(UserError, match=r"no concat, concat_noise as second is: choose another method"):
        few_steps.METHODS["gan"](teacher, KNOBS, 1)


@pytest.mark.slow
def test_a_student_that_is_told_the_scale_keeps_it_beside_the_words(parts):
    student = student_of(parts, "guidance")
    assert not student.sampling.solver.learned_variance  # which is the teacher's solver, and is not distilled
    cond = student.condition.choose(np.arange(2))
    encoded = jax.eval_shape(student.condition.encode, student.model.merge_frozen(None), cond)
    assert {name: leaf.shape for name, leaf in encoded.items()} == {"vector": (2, 8), "guidance": (2,)}
    asked = change_sampling(student, guidance=2.5)
    np.testing.assert_array_equal(asked.condition.choose(np.arange(2))["guidance"], 2.5)


@pytest.mark.slow
def test_words_that_have_changed_since_the_teacher_s_training_are_refused(parts, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(parts, tmp_path / "run")
    (tmp_path / "run" / "vocabulary.json").write_text('{"words": ["up", "down"]}')
    with pytest.raises(ValueError, match="have other words than in its training"):
        few_steps.load_teacher(str(tmp_path / "run"), KNOBS)
