"""A run that is tuned towards a classifier's reward: it begins as it is, and earns more after some updates."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_parts, tiny_pictures, tiny_points
from helpers.untrained import untrained
from helpers.untrained_reward import untrained_reward

from jaxdiff import alignment, distill
from jaxdiff.experiment import UserError
from jaxdiff.options import Run
from jaxdiff.planning import planning
from jaxdiff.recipe import load

FOLDER = Path(__file__).parents[1] / "experiments"
KNOBS = {"steps": 6, "batch": 8, "lr": 3e-3, "preview_every": 0}
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "pictures"
    untrained(folder, Path(tiny_pictures.__file__))
    untrained_reward(folder, SHAPE, 3)
    return folder


@pytest.mark.slow
def test_it_begins_as_the_run_and_its_gradient_earns_more(base):
    experiment = load(FOLDER / "align.py")(base=str(base), kl=0.01, last=7, **KNOBS)
    assert experiment.sampling.guidance == 1
    part, frozen = experiment.training, experiment.frozen_of_loss()
    jax.tree.map(np.testing.assert_array_equal, experiment.model.pretrained(), frozen["teacher"])
    # Other parameters than an untrained network's, whose samples are the noise that they begin with.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(a + 0.1 * rng.standard_normal(a.shape), jnp.float32), frozen["teacher"])
    frozen["teacher"] = params
    batch = {name: jnp.asarray(a) for name, a in next(part.batches(0)).items()}

    @jax.jit
    def measured(params):
        context = distill.Context(jnp.int32(0), None, frozen)
        loss = lambda params: part.loss((params, context), jax.random.key(1), batch)  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params)

    (before, at_first), gradient = measured(params)
    assert np.mean([np.any(leaf != 0) for leaf in jax.tree.leaves(gradient)]) > 0.8
    np.testing.assert_allclose([before, at_first["kl"]], [-at_first["reward"], 0], atol=1e-5)
    size = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    for _ in range(3):
        _, gradient = measured(params)
        params = jax.tree.map(lambda a, g: a - 0.1 / size * g, params, gradient)
    (after, at_last), _ = measured(params)
    assert after < before - 0.002
    assert at_last["reward"] > at_first["reward"] + 0.002 and at_last["kl"] > 0


def test_the_reward_is_the_probability_of_the_label_of_what_is_shown(base):
    classifier, rng = alignment.load_reward(alignment.load_base(str(base), Run(**KNOBS))), np.random.default_rng(0)
    x, label = rng.uniform(-3, 3, (5, *SHAPE)).astype(np.float32), np.array([2, 0, 1, 2, 1], np.int32)
    logits = classifier(np.clip(x, -1, 1))[0].astype(float)
    want = logits[range(5), label] - np.log(np.exp(logits).sum(axis=1))
    got = alignment.log_probability(classifier.params, x, {"label": jnp.asarray(label)})
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_its_classifier_is_another_than_that_of_the_evaluation_and_is_fitted_once(base, tmp_path, monkeypatch):
    found, kept = [], untrained_reward(tmp_path, SHAPE, 3)
    (tmp_path / alignment.REWARD).unlink()
    original = alignment.load_base(str(base), Run(**KNOBS))
    elsewhere = alignment.Teacher(tmp_path, original.experiment, 1.0)

    def fit(x, label, **options):
        found.append((x.shape, label.shape, options["num_classes"], options["seed"]))
        return kept

    monkeypatch.setattr(alignment, "fit_classifier", fit)
    monkeypatch.setattr(alignment, "PICTURES", 20)
    with planning():  # which asks for its shapes alone
        planned = alignment.load_reward(elsewhere)
    assert jax.tree.map(jnp.shape, planned.params) == jax.tree.map(jnp.shape, kept.params)
    assert not found and not (tmp_path / alignment.REWARD).exists()
    for _ in range(2):
        params = alignment.load_reward(elsewhere).params
    jax.tree.map(np.testing.assert_array_equal, params, kept.params)
    assert found == [((24, *SHAPE), (24,), 3, alignment.SEED)] and alignment.SEED != 0


def test_mistakes(base, tmp_path):
    build = load(FOLDER / "align.py")
    untrained(tmp_path / "points", Path(tiny_points.__file__))
    with pytest.raises(UserError, match=r"a run of pictures with two classes or more; .*points is none"):
        build(base=str(tmp_path / "points"), **KNOBS)
    untrained(tmp_path / "latents", Path(tiny_parts.__file__))
    with pytest.raises(UserError, match="network without text encoder, autoencoder"):
        build(base=str(tmp_path / "latents"), **KNOBS)
    with pytest.raises(ValueError, match="last must lie between 1 and the grid's 8 steps, got 9"):
        build(base=str(base), last=9, **KNOBS)
    with pytest.raises(ValueError, match="the step to sigma = 0 is not penalized: last must be at least 2, or kl 0"):
        build(base=str(base), last=1, **KNOBS)
    with pytest.raises(ValueError, match="kl must be"):
        build(base=str(base), kl=-1.0, **KNOBS)
    original = alignment.load_base(str(base), Run(**KNOBS))
    for shape, classes in (((9, 9, 1), 3), (SHAPE, 5)):
        untrained_reward(tmp_path, shape, classes)
        with pytest.raises(UserError, match=r"reward\.npz is for pictures .* the run has \(8, 8, 1, 3\): delete it"):
            alignment.load_reward(alignment.Teacher(tmp_path, original.experiment, 1.0))
