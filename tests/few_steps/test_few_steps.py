"""Few-step experiments of a tiny teacher: each method begins as its teacher, trains, and draws."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_pictures, tiny_points
from helpers.devices import one_device
from helpers.plans import can_be_planned
from helpers.untrained import untrained

import jaxdiff as jd
from jaxdiff import conditions, distill, few_steps, imagine, models, networks, run, sharding, train
from jaxdiff.cli import main
from jaxdiff.drawing import draw
from jaxdiff.experiment import UserError
from jaxdiff.export import export_sampler, for_export, signature
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
pytestmark = pytest.mark.slow  # each compiles a training and a sampler
KNOBS = Run(steps=4, batch=8, lr=1e-3, preview_every=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    main(["train", str(Path(tiny_points.__file__)), "--workdir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """A teacher with guidance, that was never trained."""
    folder = tmp_path_factory.mktemp("clothes") / "run"
    untrained(folder, EXPERIMENTS / "fashion.py", steps=2, batch=8, width=8)
    return folder


def student_of(teacher, method, **knobs):
    return run.load(EXPERIMENTS / "few_steps.py")(teacher=str(teacher), method=method, **{**KNOBS.__dict__, **knobs})


def test_planned(teacher):
    can_be_planned(run.load(EXPERIMENTS / "few_steps.py"), teacher=str(teacher), **KNOBS.__dict__)


@pytest.mark.parametrize("method", few_steps.METHODS)
def test_each_method_begins_as_its_teacher_and_has_a_step(method, parts):
    """A teacher with prompts, frozen arrays and a learned variance, of which a student has the mean."""
    experiment = student_of(parts, method)
    begin, part = experiment.model.pretrained(), experiment.training
    if method != "gan":  # the same function of its own inputs
        original, rng = run.load_run(parts), np.random.default_rng(0)
        x, noise = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), jnp.asarray([1.0, 500.0, 900.0])
        cond = {"vector": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)}
        merged = original.model.merge_frozen(run.parameters(original, parts))
        expected, _ = original.model.apply(merged, x, noise, cond)
        cond |= {"next_noise": noise / 2} if experiment.model.network.next_noise else {}
        cond |= {"guidance": noise / 100} if method == "guidance" else {}
        got = experiment.model.apply(experiment.model.merge_frozen(begin), x, noise, cond)
        np.testing.assert_allclose(got, expected, rtol=1e-6)

    options = {"ema": part.ema, "averaged": part.averaged}
    update = train.make_update(part.loss, part.optimizer, key=jax.random.key(0), given=part.given, **options)
    state = jax.eval_shape(lambda params: train.new_state(params, part.optimizer, **options), begin)
    batch = {name: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype) for name, leaf in part.batch_spec.items()}
    after, metrics = jax.eval_shape(update, state, batch, experiment.frozen_of_loss())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert {"loss", "grad_norm", "skipped"} <= metrics.keys()


def shaken(params):
    """Other parameters: at its teacher's, a student has next to nothing to learn."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.asarray(a) + rng.normal(0, 0.2, a.shape).astype(np.float32), params)


# `adversarial` has the features and the critic of `latent_adversarial`, `consistency` the loss of `ect`.
COVERED = {"guidance", "latent_adversarial", "ect"}


@pytest.mark.parametrize("method", [name for name in few_steps.METHODS if name not in COVERED])
def test_eight_devices_equal_one(method, teacher, monkeypatch):
    """The loss and its gradient; of several players, those of all at once."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    experiment, found = student_of(teacher, method), []
    begin, frozen = shaken(experiment.model.pretrained()), experiment.frozen_of_loss()
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(params, frozen, batch):
        average = (params, params) if method == "progressive" else params
        inputs = distill.Context(jnp.int32(1), jax.lax.stop_gradient(average), frozen)
        if experiment.training.averaged is not None:  # several players
            inputs = dict.fromkeys(params, jnp.bool_(True)), inputs
        return experiment.training.loss((params, inputs), jax.random.key(1), batch)[0]

    for data, fsdp in ((1, 1), (2, 4)):
        mesh = train.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
        params, given = (jax.device_put(tree, sharding.shard_params(tree, mesh)) for tree in (begin, frozen))
        assert (mesh.size == 1) == all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
        found.append(jax.device_get(loss(params, given, train.shard_batch({"x": x}, mesh))))
    (one, gradient), (eight, sharded) = found
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * size), sharded, gradient)
    assert np.mean([np.any(leaf != 0) for leaf in jax.tree.leaves(gradient)]) > 0.8


@pytest.mark.parametrize("method", ["consistency", "distribution_matching"])
def test_a_run_on_eight_devices_goes_on_to_the_bit(method, teacher, tmp_path, monkeypatch):
    """With an average as a part of the state, and with players, who all have their turn after the stop."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    original, mesh = few_steps.load_teacher(str(teacher), KNOBS), train.make_mesh(2, 4)
    chosen = few_steps.METHODS[method](original, KNOBS, 1)
    experiment = few_steps.experiment_of(original, chosen, KNOBS, optimizer=lambda n, rate: optax.sgd(0.1))
    part = experiment.training
    options = {"ema": part.ema, "averaged": part.averaged}
    state = train.state_from_params(experiment.model.pretrained(), part.optimizer, mesh, **options)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    options |= {"given": part.given, "frozen": experiment.frozen_of_loss(mesh)}
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(0), **options)
    batches = [train.shard_batch({"x": x}, mesh) for x in np.random.default_rng(0).normal(size=(4, 8, 2)).astype("f4")]
    state, _ = step(state, batches[0])
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state)
    for batch in batches[1:]:
        state, _ = step(state, batch)
    with train.Checkpointer(tmp_path, read_only=True) as checkpointer:
        restored = checkpointer.restore(like)
    stopped = jax.device_get(restored.params)
    for batch in batches[1:]:
        restored, _ = step(restored, batch)
    assert step.cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    for name, part in restored.params.items() if method == "distribution_matching" else ():
        pairs = zip(jax.tree.leaves(part), jax.tree.leaves(stopped[name]), strict=True)
        assert any(np.any(a != b) for a, b in pairs)


@pytest.mark.parametrize("method", ["consistency", "mean_flow", "distribution_matching"])
def test_it_trains_and_draws(method, teacher, tmp_path):
    experiment = student_of(teacher, method)
    begin, state = experiment.model.pretrained(), run.train(experiment, tmp_path / "run")
    assert int(state.step) == 4 and int(state.skipped) == 0
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.any(a != b), begin, state.params))
    assert sum(map(bool, moved)) > len(moved) / 2
    params = run.parameters(experiment, tmp_path / "run")
    sampling = replace(experiment.sampling, steps=2)
    assert np.all(np.isfinite(draw(replace(experiment, sampling=sampling), params, 4).x))


def test_a_run_that_is_cut_in_the_middle_of_a_stage_goes_on_to_the_bit(parts, tmp_path):
    """Progressive distillation has a stage for each halving: the teacher, an average, is a part of the state."""
    ends = {}
    for name, stops in {"straight": [12], "cut": [5, 12]}.items():
        for steps in stops:
            experiment = student_of(parts, "progressive", steps=12)
            experiment = replace(experiment, training=replace(experiment.training, steps=steps))
            with one_device():  # on eight a run goes on to the bit above
                ends[name] = run.train(experiment, tmp_path / name)
    for a, b in zip(jax.tree.leaves(ends["straight"]), jax.tree.leaves(ends["cut"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_guidance_becomes_an_input(clothes):
    experiment = student_of(clothes, "guidance", steps=2, guidance=3.0)
    assert experiment.sampling.guidance == 1 and experiment.sampling.steps == run.load_run(clothes).sampling.steps
    params, label = experiment.model.pretrained(), {"label": jnp.array([1, 2])}
    sampling = replace(experiment.sampling, steps=2)  # which gives the network the scale
    assert np.all(np.isfinite(draw(replace(experiment, sampling=sampling), params, 2).x))
    context = distill.Context(jnp.int32(0), None, experiment.frozen_of_loss())
    batch = {"x": jnp.ones((2, 28, 28, 1)), **label}
    loss, _ = jax.eval_shape(experiment.training.loss, (params, context), jax.random.key(0), batch)
    assert loss.shape == ()
    with pytest.raises(UserError, match=r"distils scales from 1 on, got 0\.5"):
        student_of(clothes, "guidance", guidance=0.5)


@pytest.fixture
def of_edm():
    """A teacher whose time is sigma, without a noisiest one, and whose grids do not nest."""
    process, plain = jd.processes.EDM(), tiny_points.experiment()
    network = networks.MLP(width=8, num_blocks=1)
    prediction = jd.parameterize.edm()
    model = models.of(network, process, prediction, shape=(2,), condition=plain.condition)
    sampling = replace(plain.sampling, grid=lambda n: jd.grids.karras(process, n, sigma_min=0.002, sigma_max=80.0))
    return few_steps.Teacher(Path("edm"), replace(plain, model=model, sampling=sampling), 1.0)


def test_students_of_an_edm_teacher_learn_where_they_are_drawn(of_edm):
    made = few_steps.choose(of_edm, KNOBS, "progressive", guidance=None, steps=4)
    taught, own = of_edm.experiment.sampling.grid(16), of_edm.experiment.sampling.grid(4)
    np.testing.assert_array_equal(made.sampling.grid(4).sigma, taught.sigma[::4])
    assert np.abs(np.log(own.sigma[1:4]) - np.log(taught.sigma[4:16:4])).min() > 0.3
    t, _ = of_edm.times(jax.random.key(0), 10_000)
    sigma = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 1000) ** 7
    np.testing.assert_allclose(np.mean(np.asarray(t) > 20), np.mean(sigma > 20), atol=0.02)
    params = of_edm.experiment.model.init(jax.random.key(0))
    context, batch = distill.Context(jnp.int32(0), None, {"teacher": params}), {"x": jnp.ones((256, 2))}
    for method in ("eulerian", "reflow", "semigroup"):
        chosen = few_steps.choose(of_edm, KNOBS, method, guidance=None, steps=None)
        begin = networks.start_from(of_edm.init(chosen.network, jax.random.key(0)), params)
        value, _ = jax.jit(chosen.loss)((begin, context), jax.random.key(1), batch)
        assert np.isfinite(value), method


def test_a_critic_of_a_transformer_and_its_student_have_turns(monkeypatch):
    """The critic sees a few blocks, spread over the depth; each player moves in its turn alone."""
    plain = tiny_pictures.experiment()
    with pytest.raises(UserError, match="a UNet, an MLP or a transformer, and the teacher is a Network"):
        few_steps.METHODS["adversarial"](few_steps.Teacher(Path("other"), plain, 1.0), KNOBS, 1)
    network = networks.DiT(width=8, layers=6, num_heads=2, num_classes=3)
    model = models.of(
        network, plain.model.process, plain.model.prediction, shape=plain.medium.shape, condition=plain.condition
    )
    of_dit = few_steps.Teacher(Path("dit"), replace(plain, model=model), 1.0)
    as_features, seen = networks.as_features, []
    monkeypatch.setattr(
        networks, "as_features", lambda network, names: seen.append(names) or as_features(network, names)
    )
    chosen = few_steps.METHODS["latent_adversarial"](of_dit, KNOBS, 1)
    assert seen == [[f"transformer_blocks.{i}" for i in (1, 2, 4, 5)]]
    part = few_steps.experiment_of(of_dit, chosen, KNOBS, optimizer=lambda n, rate: optax.sgd(0.1)).training

    teacher = shaken(model.init(jax.random.key(0)))
    student = shaken(teacher)
    begin = {"student": student, **chosen.others(jax.random.key(1), student)}
    options = {"ema": part.ema, "averaged": part.averaged}
    update = jax.jit(train.make_update(part.loss, part.optimizer, key=jax.random.key(0), given=part.given, **options))
    state = train.new_state(begin, part.optimizer, **options)
    for batch, turn in zip(plain.training.batches(0), ("critic", "student"), strict=False):
        after, metrics = update(state, batch, {"teacher": teacher, "model": None})
        assert np.isfinite(metrics["loss"])
        for name, player in after.params.items():
            moved = jax.tree.map(lambda a, b: np.any(a != b), player, state.params[name])
            assert np.mean(jax.tree.leaves(moved)) > 0.8 if name == turn else not any(jax.tree.leaves(moved))
        state = after


def test_options_that_a_method_does_not_take_are_refused(of_edm, teacher):
    for method, options, words in (
        ("ect", {"guidance": 1.0}, "--method ect distils no guidance"),
        ("gan", {"guidance": 1.0}, "--method gan distils no guidance"),
        ("gan", {"sample_steps": 4}, "--method gan draws in one step"),
    ):
        with pytest.raises(UserError, match=words):
            student_of(teacher, method, **options)
    other = replace(of_edm.experiment.model, network=networks.SongUNet())
    with pytest.raises(
        UserError, match="needs a network with next_noise, as UNet, DiT and MLP are; a SongUNet has none"
    ):
        few_steps.METHODS["shortcut"](replace(of_edm, experiment=replace(of_edm.experiment, model=other)), KNOBS, 1)


def test_commands_take_it_like_any_other(parts, tmp_path, capsys):
    """Its words, too, which are its teacher's, and are kept."""
    file, knobs = str(EXPERIMENTS / "few_steps.py"), ["--teacher", str(parts), "--method", "semigroup", "--batch", "16"]
    main(["plan", file, *knobs, "--topology", "cpu:8", "--mesh", "data=8"])
    assert "all-reduce" in capsys.readouterr().out
    folder = tmp_path / "run"
    main(["train", file, *knobs, "--steps", "2", "--preview-every", "0", "--workdir", str(folder)])
    words = ["--prompt", "left", "--prompt", "right up"]
    main(["sample", str(folder), "--steps", "1", "--num", "4", *words, "--out", str(tmp_path / "x.npz")])
    student = run.load_run(folder)
    params = run.parameters(student, folder)
    np.testing.assert_allclose(
        np.load(tmp_path / "x.npz")["x"], draw(student, params, 4, words=words[1::2]).x, atol=1e-5
    )
    kept, cond = json.loads((folder / "vocabulary.json").read_text())["words"], student.condition.parse("right up")
    assert tuple(kept) == student.condition.vocabulary == run.load_run(parts).condition.vocabulary
    found, _ = imagine.of_experiment(student, params).cond(1, "right up", 1.0)
    np.testing.assert_array_equal(found["ids"], cond["ids"])
    main(["export", str(folder), "--out", str(tmp_path / "sampler.jaxdiff")])
    assert (tmp_path / "sampler.jaxdiff").stat().st_size > 0
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(folder), "--guidance", "2", "--out", str(tmp_path / "y.npz")])
    assert stop.value.code == 2 and "use --guidance 1" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["consistency", "semigroup"])
def test_a_student_of_a_guided_run_is_drawn_without_guidance(method, clothes):
    """In half precision, as on accelerators, whose samplers cast parameters before the loop."""
    with for_export("bfloat16"):
        student = student_of(clothes, method, sample_steps=2)
        shapes = jax.eval_shape(student.model.init, jax.random.key(0))
        params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        assert "guidance" not in signature(export_sampler(student, params, platforms=("cpu",)))
        with pytest.raises(ValueError, match="whose guidance was not distilled: use --guidance 1"):
            export_sampler(student, params, guidance=2.0)


def test_a_student_that_is_told_the_scale_is_drawn_with_any(clothes):
    """By --guidance, which is no second guidance, and as an argument of its exported program."""
    student = student_of(clothes, "guidance", sample_steps=1)
    scale = student.condition.choose(np.arange(1))["guidance"].item()
    params = shaken(student.model.pretrained())
    asked = change_sampling(student, guidance=2.0)
    assert asked.guidance == 1 and np.abs(draw(asked, params, 3).x - draw(student, params, 3).x).max() > 1e-3
    program = export_sampler(student, params, platforms=("cpu",))
    for made, guidance in ((asked, 2.0), (student, scale)):
        called = program.call(seed=0, index=jnp.arange(3), label=jnp.arange(3), guidance=guidance)
        np.testing.assert_allclose(called, draw(made, params, 3).x, atol=1e-5)
    generator = imagine.of_experiment(student, params)
    for ask in (
        lambda: change_sampling(student, guidance=9.0),
        lambda: export_sampler(student, params, guidance=9.0),
        lambda: generator.cond(1, "Bag", 9.0, ()),
    ):
        with pytest.raises(ValueError, match=f"from 1 to {1.5 * scale:g}, got 9"):
            ask()


@pytest.mark.parametrize("method", ["continuous_consistency", "eulerian", "lagrangian", "mean_flow"])
def test_derivatives_are_taken_in_float32(method, clothes):
    with for_export("bfloat16"):
        student = student_of(clothes, method)
        params = jax.eval_shape(student.model.init, jax.random.key(0))
        assert student.model.network.dtype == jnp.bfloat16
    inputs = params, distill.Context(jnp.int32(0), None, student.frozen_of_loss())
    batch = {"x": jnp.zeros((4, 28, 28, 1)), "label": jnp.zeros(4, int)}
    gradient = jax.grad(lambda params, rest: student.training.loss((params, rest), jax.random.key(0), batch)[0])
    made = re.findall(r":(\w+)\[[\d,]+\] = convolution\[", str(jax.make_jaxpr(gradient)(*inputs)))
    assert {"f32", "bf16"} == set(made)  # of the student's derivative, and of all else


def test_each_player_has_an_optimizer_of_its_own_number_of_updates(teacher):
    original, counts = few_steps.load_teacher(str(teacher), KNOBS), []

    def optimizer(updates, rate):
        counts.append((updates, rate))
        return train.adamw(1e-3)

    for method in ("distribution_matching", "gan", "latent_adversarial", "progressive", "consistency"):
        chosen = few_steps.METHODS[method](original, replace(KNOBS, steps=12), 1)
        few_steps.experiment_of(original, chosen, replace(KNOBS, steps=12), optimizer=optimizer)
    plain = [(updates, 1.0) for updates in (4, 8, 6, 6, 3, 12)]  # student and fake; generator and critic; a stage; all
    assert counts == [*plain[:4], (6, 0.05), (6, 1.0), *plain[4:]]  # a student is slower than its critic of features


def test_the_command_line_knows_the_methods():
    assert get_args(run.load(EXPERIMENTS / "few_steps.py").__annotations__["method"]) == tuple(few_steps.METHODS)


def test_mistakes(teacher, tmp_path):
    student = student_of(teacher, "semigroup")
    with pytest.raises(ValueError, match="both ends of a step has its guidance distilled"):
        replace(student, condition=conditions.label(3), sampling=replace(student.sampling, guidance=2.0))
    for method, words in (("progressive", "1, 2, 4 or 8"), ("shortcut", r"1, 2, 4, \.\.\. 32, got 3")):
        with pytest.raises(ValueError, match=f"sample_steps must be {words}"):
            student_of(teacher, method, sample_steps=3)
    with pytest.raises(ValueError, match="no condition that guidance could lead to"):
        student_of(teacher, "consistency", guidance=2.0)
    with pytest.raises(ValueError, match="holds no run"):
        student_of(tmp_path, "consistency")
    with pytest.raises(UserError, match=r"--method guidance distils .* was not$"):
        student_of(teacher, "guidance")


def test_runs_of_which_no_few_step_model_is_made_are_refused_for_what_they_have(monkeypatch):
    plain = tiny_points.experiment()
    model, condition = plain.model, plain.condition
    cases = {
        "frozen arrays that are no dict": replace(plain, model=replace(model, frozen=jnp.zeros(2))),
        "no diffusion": replace(
            plain, model=models.Model(model.init, generate=lambda params, keys, cond: keys), sampling=None
        ),
        "a network that models.of has not made": replace(plain, model=replace(model, network=None)),
        "a network that is given both ends of a step": replace(
            plain, model=replace(model, network=model.network.clone(next_noise=True))
        ),
        "a network that is given the scale of its guidance": replace(
            plain, model=replace(model, network=model.network.clone(guidance_dim=8))
        ),
        "several players": replace(plain, training=replace(plain.training, averaged=lambda params: params)),
        "noise on its condition": replace(plain, condition=replace(condition, augment=lambda key, cond: cond)),
    }
    of_teacher = sys.modules["jaxdiff.few_steps.teacher"]
    monkeypatch.setattr(of_teacher, "open_run", lambda path: path)
    for sentence, given in cases.items():
        monkeypatch.setattr(of_teacher, "load_run", lambda *_, given=given, **__: given)
        with pytest.raises(UserError, match=f"not made of a run with .*{sentence}"):
            few_steps.load_teacher("runs/mine", KNOBS)
