"""A run that is steered by edges: it begins as it is, its own weights stay, and what is measured are its edges."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_points
from helpers.untrained import untrained

import jaxdiff as jd
from jaxdiff import conditions, control, data, media, networks, train
from jaxdiff.experiment import UserError
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "fashion"
    untrained(folder, FOLDER / "fashion.py", width=8)
    return folder


def shaken(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(a + 0.1 * rng.standard_normal(a.shape), jnp.float32), tree)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_it_begins_as_the_run_and_hints_matter_once_it_has_learned(kind, base, monkeypatch):
    read = train.load_params
    monkeypatch.setattr(control.train, "load_params", lambda *args, **options: shaken(read(*args, **options)))
    experiment = load(FOLDER / "control.py")(base=str(base), kind=kind, batch=4)
    model, condition, original = experiment.model, experiment.condition, control.load_base(str(base))
    cond = {name: jnp.asarray(a) for name, a in condition.choose(np.arange(3)).items()}
    x, noise = jax.random.normal(jax.random.key(0), (3, 28, 28, 1)), jnp.asarray([5.0, 300.0, 900.0])

    @jax.jit
    def steered(params, cond):
        params = (params, model.frozen)
        return model.apply(params, x, noise, condition.encode(params, cond))

    begin = model.pretrained()
    want = original.model.apply(model.frozen["unet"], x, noise, {"label": cond["label"]})
    np.testing.assert_allclose(steered(begin, cond), want, atol=1e-5)
    assert np.abs(want).max() > 0.1
    learned, blank = shaken(begin), {**cond, "hint": jnp.zeros_like(cond["hint"])}
    assert np.abs(steered(learned, cond) - steered(learned, blank)).max() > 1e-2
    # Without its label it still has its hint.
    np.testing.assert_array_equal(condition.without(cond)["hint"], cond["hint"])
    assert not {"unet"} & begin.keys() and condition.choose(np.arange(12))["hint"].shape == (12, 28, 28, 3)


@pytest.mark.slow
def test_an_adapter_s_features_are_computed_once_per_picture(base):
    experiment = load(FOLDER / "control.py")(base=str(base), kind="adapter", batch=4)
    model, condition, sampling = experiment.model, experiment.condition, experiment.sampling
    generate = sampler(model, sampling, condition, experiment.medium, guided=False)
    params = model.merge_frozen(jax.eval_shape(model.init, jax.random.key(0)))
    cond = {name: jnp.asarray(a) for name, a in condition.choose(np.arange(2)).items()}
    text = str(jax.make_jaxpr(generate)(params, example_keys(0, 2), cond, 1.0))
    steps = text[text.index("scan[") :]
    loop = steps[: steps.index("length=")] if "length=" in steps else steps
    assert "f32[2,28,28,3]" in text and "f32[2,28,28,3]" not in loop  # the hint is no input of the loop


def test_edges_are_measured_against_those_of_the_hint_and_of_another_s():
    clothes = data.load_arrays(data.open_hints("edges", data.open_dataset("fashion_mnist", "test")), 40)
    hints, x = np.float32(clothes["hint"]) / 255, data.to_float(clothes["x"])
    np.testing.assert_array_equal(media.edge_scores(x, hints), 1)
    np.testing.assert_array_equal(media.edge_scores(0 * x, hints), 0)
    condition = type("Condition", (), {"choices": 0})
    medium = media.hinted(media.images((28, 28, 1)))
    report = medium.evaluator(Path(), condition)(media.Samples(x, {"hint": hints}))
    few = medium.evaluator(Path(), type("Condition", (), {"choices": 40}))(media.Samples(x, {"hint": hints}))
    assert "edge_f1_other" not in few.values and few.values["edge_f1"] == 1  # there is no other picture of its class
    assert report.values["edge_f1"] == 1 and report.values["edge_f1_other"] < 0.5 and "F1 1.000" in report.text


@pytest.mark.slow
def test_only_plain_runs_are_steered(tmp_path):
    untrained(tmp_path / "points", Path(tiny_points.__file__))
    with pytest.raises(UserError, match=r"is a networks\.UNet without"):
        control.load_base(str(tmp_path / "points"))


def test_a_base_without_a_null_condition_takes_no_dropout_of_it(monkeypatch):
    model, build = SimpleNamespace(process=None, prediction=None), load(FOLDER / "control.py")
    monkeypatch.setattr(control, "load_base", lambda *args: SimpleNamespace(model=model, condition=conditions.none()))
    with pytest.raises(AttributeError, match="medium"):  # by its default it is not refused
        build()
    with pytest.raises(ValueError, match=r"a base without a null condition takes no --cond-dropout, got 0\.3"):
        build(cond_dropout=0.3)


@pytest.mark.slow
def test_a_linear_control_of_a_gaussian_reaches_the_conditional_mean_s_error():
    """Of (x, c) jointly Gaussian: the base is E[x_0 | x_t], and with a trained control E[x_0 | x_t, c]."""
    rng, d, t = np.random.default_rng(0), 3, 0.5
    root = rng.standard_normal((2 * d, 2 * d))
    joint = root @ root.T / (2 * d)
    scale = np.repeat([1 - t, 1], d)
    seen = scale[:, None] * joint * scale + np.diag(np.repeat([t**2, 0], d))  # the covariance of (x_t, c)
    cross = joint[:d] * scale  # of x_0 with (x_t, c)
    gain = cross[:, :d] @ np.linalg.inv(seen[:d, :d])
    of_base = np.trace(joint[:d, :d] - gain @ cross[:, :d].T) / d
    of_both = np.trace(joint[:d, :d] - cross @ np.linalg.inv(seen) @ cross.T) / d
    assert of_both < 0.7 * of_base

    def linear(params, x, noise, cond, *, key=None):
        return x @ params + cond["residuals"][0]

    def control_of(params, x, noise, cond, *, key=None):
        return (jnp.concatenate([x, cond["hint"]], axis=1) @ params,)

    apply = networks.controlled(control_of, linear)
    frozen = jnp.asarray(gain.T, jnp.float32)
    fixed = lambda key, count: (jnp.full(count, t), jnp.ones(count))  # noqa: E731
    process = jd.processes.Flow()
    denoising = jd.losses.denoising_loss(apply, process, jd.parameterize.x0, times=fixed)

    def loss(params, key):
        drawn = jax.random.normal(key, (512, 2 * d)) @ jnp.asarray(root.T / np.sqrt(2 * d), jnp.float32)
        batch = {"x": drawn[:, :d], "hint": drawn[:, d:]}
        return denoising({"controlnet": params, "unet": frozen}, jax.random.fold_in(key, 1), batch)[0]

    @jax.jit
    def train_and_measure(key):
        def update(params, i):
            rate = 0.5 * (1 - i / 600)
            return params - rate * jax.grad(loss)(params, jax.random.fold_in(key, i.astype(int))), None

        zeros = jnp.zeros((2 * d, d))
        params, _ = jax.lax.scan(update, zeros, jnp.arange(600.0))
        keys = jax.random.split(jax.random.fold_in(key, 1000), 100)
        return [jax.lax.map(lambda key, p=p: loss(p, key), keys).mean() for p in (zeros, params)]

    before, after = train_and_measure(jax.random.key(0))
    np.testing.assert_allclose([before, after], [of_base, of_both], rtol=0.03)
