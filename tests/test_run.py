"""A run by functions, as in a notebook: trained, gone on with, drawn, measured, begun from another one."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import conditions, run, train
from jaxdiff.cli.errors import sentence
from jaxdiff.drawing import Drawer
from jaxdiff.experiment import Experiment, Medium, Model, Sampling, Training, UserError
from jaxdiff.media import Report
from jaxdiff.options import Count, Help, Natural
from jaxdiff.recipe import flat, load


def save(path, samples):
    np.savez(path, x=samples.x, **samples.cond)


def evaluator(workdir, condition):
    return lambda samples: Report({"mean": float(samples.x.mean())}, f"{len(samples.x)} of {condition.choices}")


def make(width: int = 2, steps: int = 3, lr: float = 0.1, **options) -> Experiment:
    """Points that are pulled to their label, by one weight for each dimension."""
    flow = jd.processes.Flow()

    def apply(params, x, noise, cond):
        return x - params["in"]["w"] - cond["label"][:, None].astype(x.dtype)

    def batches(start, indices=None):
        for number in range(start, 100):
            yield {"x": np.full((8, width), number, np.float32), "label": np.arange(8, dtype=np.int32) % 3}

    return Experiment(
        Model(lambda key: {"in": {"w": jnp.zeros((1, width))}}, apply, flow, jd.parameterize.velocity),
        Training(
            lambda params, key, batch: (jnp.mean((batch["x"] - params["in"]["w"]) ** 2), {}),
            train.adamw(lr),
            train.ema.constant(0.5),
            batches,
            batch=8,
            steps=steps,
            **({"preview_every": 2} | options),
        ),
        Sampling(lambda n: jd.grids.by_time(flow, n), jd.solvers.ddim(), steps=2),
        conditions.label(3, ("a", "b", "c"), null=None),
        Medium((width,), save, preview=4, evaluator=evaluator),
        seed=0,
    )


def test_a_negative_keeps_what_words_do_not_ask_for(monkeypatch):
    """The picture that a sample follows; and conditions are made once, with those that fill the last batch."""
    made, asked, given = make(), [], []
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    hinted = conditions.hint(conditions.label(3, ("a", "b", "c")), pictures)
    counted = replace(hinted, choose=lambda index: asked.append(len(index)) or hinted.choose(index))
    drawer = Drawer(replace(made, condition=counted))

    def generate(params, keys, cond, scale, away):
        given.append((cond, away))
        return jnp.zeros((len(keys), 2))

    monkeypatch.setattr(drawer, "_generate", generate)
    samples = drawer({"in": {"w": jnp.zeros((1, 2))}}, 3, negative=hinted.parse("b"), batch=2)
    assert asked == [4] and samples.names == ("a", "b", "c") and len(samples.cond["hint"]) == 3
    for cond, away in given:
        assert away["label"].tolist() == [1, 1]
        np.testing.assert_array_equal(away["hint"], cond["hint"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert int(run.train(make(steps=2, save_every=1), workdir).step) == 2
    assert int(run.train(make(steps=3), workdir).step) == 3  # goes on
    return workdir


def test_train_leaves_checkpoints_metrics_and_previews(trained):
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert not (trained / "run.json").exists()  # no file made it
    x = np.load(trained / "samples.npz")
    assert x["x"].shape == (8, 2) and x["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.slow
def test_samples_and_their_measure(trained):
    made = make()
    params = run.parameters(made, trained)
    samples = run.draw(made, params, 5)
    assert samples.cond["label"].tolist() == [0, 1, 2, 0, 1] and samples.choices == 3
    np.testing.assert_allclose(run.draw(made, params, 4, batch=2).x, samples.x[:4], atol=1e-6)
    named = run.draw(made, params, 2, words="b")
    np.testing.assert_allclose(named.x[1], samples.x[1], atol=1e-6)
    assert named.cond["label"].tolist() == [1, 1] and named.choices == 0
    assert np.abs(run.draw(made, params, 5, seed=1).x - samples.x).max() > 0.1
    fewer = replace(made, sampling=replace(made.sampling, steps=1))
    assert np.abs(run.draw(fewer, params, 5).x - samples.x).max() > 0.1
    report = run.evaluate(made, params, trained, num=5)
    assert report.text == "5 of 3" and json.loads((trained / "eval.json").read_text()) == report.values
    np.testing.assert_allclose(report.values["mean"], samples.x.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="num must be an integer of at least 1, got 0"):
        run.draw(made, params, 0)
    with pytest.raises(ValueError, match="at least 2 samples of each of 3 classes, 6, got 5"):
        run.evaluate(replace(made, medium=replace(made.medium, least_of_each=2)), params, trained, num=5)
    with pytest.raises(ValueError, match="this one's has no data"):
        run.evaluate(replace(made, medium=replace(made.medium, evaluator=None)), params, trained)


def test_a_run_begins_with_anothers_parameters(trained, tmp_path):
    begun = run.train(make(steps=1, lr=0.01, preview_every=0), tmp_path / "a", init_from=trained)
    first = train.load_params(trained)["in"]["w"]
    # One step of AdamW moves by the learning rate.
    assert 0.005 < float(jnp.abs(begun.params["in"]["w"] - first).max()) < 0.015 < 0.05 < float(jnp.abs(first).min())
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "events.jsonl",
        "metrics.jsonl",
    ]
    with pytest.raises(
        ValueError, match=r"run cannot begin this run: in/w has the shape \(1, 2\) there and has the shape"
    ):
        run.train(make(width=3), tmp_path / "b", init_from=trained)
    assert not list((tmp_path / "b").glob("[!.]*"))


def test_a_batch_or_a_time_that_cannot_be_is_refused_before_the_folder_belongs_to_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"a batch of 8 cannot be cut into grad_accum_steps=3 microbatches on 8 parts"):
        run.train(make(grad_accum_steps=3, preview_every=0), tmp_path / "run")
    assert not list((tmp_path / "run").glob("[!.]*"))
    for seconds in (-5.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match=f"hang_timeout must be above 0 seconds, got {seconds:g}"):
            run.train(make(), tmp_path / "other", hang_timeout=seconds)
    assert not (tmp_path / "other").exists()


def test_previews_that_cannot_be_drawn_are_refused_before_the_first_step(tmp_path):
    made = make()
    bad = replace(made, medium=replace(made.medium, decode=lambda params, x: params["missing"]))
    with pytest.raises(KeyError, match="missing"):
        run.train(bad, tmp_path / "run")
    assert not list((tmp_path / "run").glob("[!.]*"))
    with pytest.raises(ValueError, match=r"sampling.solver is heun, which is a factory: call heun\(\)"):
        replace(made.sampling, solver=jd.solvers.heun)
    with pytest.raises(ValueError, match="model must be a Model, got <function"):
        replace(made, model=save)


def test_the_knobs_of_a_dataclass_are_arguments_of_their_own():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Common:
        steps: Count
        seed: Natural = 3

    def build(width: int, run: Common = Common(steps=5), name: str = "a"):
        return width, run, name

    made = flat(build)
    assert made(width=2) == (2, Common(5, 3), "a") and made(width=2, seed=1, steps=7) == (2, Common(7, 1), "a")
    assert list(made.__annotations__) == ["width", "steps", "seed", "name"]
    assert made.__annotations__["steps"] == Count

    def twice(steps: int, run: Common):
        """Has two."""

    with pytest.raises(ValueError, match="two arguments of the name 'steps'"):
        flat(twice)
    fashion = load("fashion")
    assert next(iter(fashion.__annotations__)) == "steps" and Help("updates of the parameters.") in (
        fashion.__annotations__["steps"].__metadata__
    )


def test_knobs_that_their_types_do_not_allow_are_refused_in_python_too():
    for knobs, name in ({"steps": 0}, "steps"), ({"width": -8}, "width"):
        with pytest.raises(ValueError, match=f"{name} must be an integer from 1 to"):
            jd.load("fashion")(**knobs)


def test_words_that_a_condition_refuses_are_a_users_mistake():
    """Also where the condition is the user's own, whose errors otherwise keep their tracebacks."""

    def parse(words):
        raise ValueError(f"no size {words}")

    experiment = make()
    experiment = replace(experiment, condition=replace(experiment.condition, parse=parse))
    with pytest.raises(UserError, match="no size huge") as told:
        run.draw(experiment, {"in": {"w": jnp.zeros((1, 2))}}, 1, words="huge")
    assert sentence(told.value) == "no size huge"
