"""Every experiment builds, takes a step that moves its parameters, and draws from its own sampler."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from helpers import tiny_pictures
from helpers.plans import can_be_planned
from helpers.untrained import unpacked, untrained
from helpers.untrained_reward import untrained_reward
from PIL import Image

from jaxdiff import conditions, data, first_stage, networks, parameterize, solvers, train
from jaxdiff.drawing import draw
from jaxdiff.hooks import change_sampling
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.solvers import Solver

FOLDER = Path(__file__).parents[1] / "experiments"
TINY = {
    "align": {"last": 2},
    "cascade": {"width": 8, "size": 8, "low": 4},
    "control": {"kind": "adapter"},
    "emoji": {"width": 8},
    "fashion": {"width": 8},
    "latent": {"width": 8, "size": 3},
    "mri": {"width": 8, "size": 16},
    "toy2d": {"width": 16},
    "cifar10_ddpm": {"widths": (32, 32), "num_blocks": 1, "source": "fashion_mnist", "size": 8},
    "cifar10_edm": {"widths": (32, 32), "num_blocks": 1, "source": "fashion_mnist", "size": 8},
    "imagenet64_adm": {"widths": (64,), "num_blocks": 1, "source": "fashion_mnist", "size": 8},
    "imagenet256_dit": {"width": 16, "layers": 2, "num_heads": 2, "latent": (4, 4, 2), "num_classes": 3},
    "text_mmdit": {"depth": 1, "latent": (4, 4, 2), "tokens": (3, 6), "vector": 5},
}

SHALLOW = {"cascade", "emoji", "mri"}
SLOW = TINY.keys() - {"toy2d"}  # U-Nets compile for long; the command line's tests train fashion


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """By its name, an experiment of little size on data at hand: latents and texts are drawn at random."""
    folder, rng = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    arrays = {name: rng.normal(size=(8, 4, 4, 2)) for name in ("mean", "std")}
    arrays |= {"tokens": rng.normal(size=(8, 3, 6)), "vector": rng.normal(size=(8, 5)), "label": rng.integers(0, 3, 8)}
    np.savez(folder / "0.npz", **arrays)
    origin = first_stage.open_origin(first_stage.Architecture(widths=(8,)), (3, 3, 1))
    given = {name: {"source": str(folder)} for name in ("imagenet256_dit", "text_mmdit")}
    given["latent"] = {"autoencoder": str(folder / "vae")}
    given["control"] = {"base": str(folder / "fashion")}
    given["align"] = {"base": str(folder / "pictures")}

    def build(name, shallow=False, **knobs):
        if name == "latent" and not (folder / "vae").exists():
            origin.save(origin.init(jax.random.key(0)), folder / "vae", scale=1.5)
        if name == "control" and not (folder / "fashion").exists():
            unpacked("fashion", folder / "fashion")
        if name == "align" and not (folder / "pictures").exists():
            untrained(folder / "pictures", Path(tiny_pictures.__file__))
            untrained_reward(folder / "pictures", (8, 8, 1), 3)
        made, unet = load(FOLDER / f"{name}.py"), networks.UNet
        with pytest.MonkeyPatch.context() as patch:
            if shallow:  # of its levels the first, which attends if one of them does: each compiles for seconds
                one = lambda widths, attention=(), **rest: unet(widths[:1], attention=attention and (0,), **rest)  # noqa: E731
                patch.setattr(networks, "UNet", one)
            return made(**TINY[name], **given.get(name, {}), **knobs)

    return build


def test_table_is_complete():
    # Others begin with a folder or do not denoise: they have other tests.
    others = ("autoencoder", "few_steps", "finetune", "image_text", "unclip")
    assert sorted([*TINY, *others]) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", TINY)
def test_common_knobs(name):
    parameters = load(FOLDER / f"{name}.py").__annotations__
    assert {"steps", "batch", "seed", "lr", "grad_accum_steps", "preview_every"} <= set(parameters)
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 70


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TINY]
)
def test_first_step(name, tiny):
    knobs = {"steps": 10, "batch": 4}
    if name in SHALLOW:
        jax.eval_shape(tiny(name, **knobs).model.init, jax.random.key(0))  # with all of its levels it is traced
    experiment = tiny(name, shallow=name in SHALLOW, **knobs)
    model, part = experiment.model, experiment.training
    mesh = train.make_mesh(devices=jax.devices()[:1])
    state = train.init_state(model.init, part.optimizer, jax.random.key(0), mesh)
    seen = {"frozen": experiment.frozen_of_loss(mesh), "given": part.given}
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(1), ema=part.ema, **seen)
    before = jax.device_get(state.params)
    batches = part.batches(0)
    described = {name: ((4, *one.shape), one.dtype) for name, one in part.batch_spec.items()}
    assert part.batch == 4
    assert {name: (one.shape, one.dtype) for name, one in next(batches).items()} == described
    # Two steps: with warm-up the first has a learning rate of zero.
    for _ in range(2):
        state, metrics = step(state, train.shard_batch(next(batches), mesh))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    chex.assert_tree_all_finite(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, state.ema)
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    levels = experiment.sampling.grid(experiment.sampling.steps)
    assert levels.sigma.shape == (experiment.sampling.steps + 1,) and levels.sigma[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_planned(name, tiny):
    # What is steered is a networks.UNet itself.
    can_be_planned(partial(tiny, name, shallow=name != "control"), steps=10, batch=4)


def change(experiment, model=(), **sampling):
    """The experiment with other attributes of its model and its sampling."""
    return replace(
        experiment, model=replace(experiment.model, **dict(model)), sampling=replace(experiment.sampling, **sampling)
    )


def sampler_of(experiment, **options):
    return sampler(experiment.model, experiment.sampling, experiment.condition, experiment.medium, **options)


def test_a_solver_of_the_command_line_gets_the_process_of_the_experiment():
    changed = change_sampling(load(FOLDER / "toy2d.py")(), solver="heun(churn=0.3)")
    assert changed.sampling.solver.stochastic


def test_a_strength_out_of_range_is_refused_before_the_sampler_is_compiled():
    generate = sampler_of(load(FOLDER / "toy2d.py")())
    for strength in (1.5, np.float32(-0.5), jax.numpy.float32(2.0), np.nan):
        with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got"):
            generate({}, None, {}, 1.0, image=(None, strength))
    with pytest.raises(ValueError, match="one number for all images"):
        generate({}, None, {}, 1.0, image=(None, np.ones(2)))


def test_fashion_takes_pictures_of_any_size_without_classes(tmp_path):
    """From a folder without subfolders: nothing to ask for, no guidance, and squares by --size."""
    for i, size in enumerate([(9, 12), (12, 8), (8, 8), (10, 10)]):
        Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    build = partial(load(FOLDER / "fashion.py"), source=f"folder:{tmp_path}", width=8, batch=4)
    with pytest.raises(ValueError, match=r"images of 12 x 9 and of 8 x 12 pixels lie in .* \(--size\)"):
        build()
    experiment = build(size=8)
    assert experiment.medium.shape == (8, 8, 3) and experiment.sampling.guidance == 1 and not experiment.condition.spec
    batch = next(iter(experiment.training.batches(0)))
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    value, _ = jax.eval_shape(experiment.training.loss, params, jax.random.key(0), batch)
    assert batch.keys() == {"x"} and value.shape == ()


def test_knobs_that_nothing_looks_at_and_those_out_of_range_are_refused(monkeypatch):
    pictures = data.ArraySource(np.zeros((4, 8, 8, 1), np.uint8))
    monkeypatch.setattr(data, "open_dataset", lambda *args, **options: pictures)
    cascade, fashion = (partial(load(FOLDER / f"{name}.py"), width=8, size=8) for name in ("cascade", "fashion"))
    for build, where, knobs in (
        (partial(cascade, low=0), "--low 0", {"level": 0.2, "max_level": 0.2, "blur": 0.2, "split": "train"}),
        (partial(cascade, low=0), "data without captions and classes", {"cond_dropout": 0.2}),
        (fashion, "data without classes", {"cond_dropout": 0.2}),
    ):
        build()  # by their defaults they are not
        for name, value in knobs.items():
            with pytest.raises(ValueError, match=f"{where} takes no --{name.replace('_', '-')}, got {value!r}: leave"):
                build(**{name: value})
    for name in ("level", "max_level", "blur", "cond_dropout"):
        for value in (-0.5, 1.5):
            with pytest.raises(ValueError, match=f"{name} must be a finite number from 0 to 1, got {value}"):
                cascade(low=4, **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knobs"), [("fashion", {}), ("imagenet64_adm", {"widths": (64, 64)})])
def test_sampler(name, knobs):
    experiment = change(load(FOLDER / f"{name}.py")(**{"batch": 4, **TINY[name], **knobs}), steps=2)
    params, scale = experiment.model.init(jax.random.key(0)), experiment.sampling.guidance
    generate = sampler_of(experiment)
    label = jax.numpy.arange(3, dtype=jax.numpy.int32)
    x = generate(params, example_keys(0, 3), {"label": label}, scale)
    assert x.shape == (3, *experiment.medium.shape) and np.isfinite(x).all()
    # The third picture of seed 0 is the same in another batch, at another place; the scale compiles nothing.
    alone = generate(params, example_keys(0, 3, first=2), {"label": label}, scale)
    again = generate(params, example_keys(0, 3), {"label": label.at[2].set(0)}, 1.0)
    np.testing.assert_allclose(alone[0], again[2], atol=2e-5)
    assert generate._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_samples_of_texts(tiny, tmp_path, given):
    """Samples take the table's prompts in turn; without any they are of the null prompt, which is the last row."""
    table = {"tokens": np.arange(54).reshape(3, 3, 6), "vector": np.arange(15.0).reshape(3, 5)}
    np.savez(tmp_path / "table.npz", **table)
    experiment = tiny("text_mmdit", batch=4, **({"prompts": str(tmp_path / "table.npz")} if given else {}))
    condition = experiment.condition
    assert condition.choices == (2 if given else 0)
    rows = table if given else {name: np.zeros_like(array[:1]) for name, array in table.items()}
    for number, row in enumerate((0, 1, 0) if given else (0, 0, 0)):
        got = condition.choose(np.arange(3))
        assert all(np.array_equal(got[name][number], rows[name][row]) for name in rows)
    for name, array in condition.without(condition.choose(np.arange(3))).items():
        np.testing.assert_array_equal(array, np.repeat(rows[name][-1:], 3, axis=0))
    # The model gets them: what is zero at first hides the text.
    params = experiment.model.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params)
    short = change(experiment, steps=1, guidance=1.0)
    x = draw(short, params, 4).x
    assert x.shape == (4, 4, 4, 2) and np.isfinite(x).all()
    if given:
        assert np.abs(x[0] - draw(short, params, 1, words="1").x[0]).max() > 1e-3


@pytest.mark.slow
def test_where_samples_begin_and_how_they_end():
    """The noise has the experiment's std, the last x is decoded, and the path is as it was."""
    still = Solver(lambda x: (), lambda denoise, key, x, state, cur, nxt: (x, state))
    experiment = change(load(FOLDER / "toy2d.py")(), {"apply": lambda params, x, noise, cond: x}, solver=still)
    seen = change(experiment, init_noise_std=lambda levels: 3 * levels.sigma[0])
    seen = replace(seen, medium=replace(seen.medium, decode=lambda params, x: x + params))
    keys = example_keys(0, 4)
    start = sampler_of(experiment)(jax.numpy.float32(5), keys, {}, 1.0)
    moved, path = sampler_of(seen, path=True)(jax.numpy.float32(5), keys, {}, 1.0)
    assert np.abs(start).max() > 0.5 and path.shape == (41, 4, 2)
    np.testing.assert_allclose(moved, 3 * start + 5, rtol=1e-6)
    np.testing.assert_allclose(path, np.broadcast_to(3 * start, path.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "batch"),
    [
        # As published: DiT's count has a table of 256 positions; that of Stable Diffusion 3.5 large, which is this
        # network, has not its table of 192 x 192 positions, which is a parameter here.
        ("imagenet256_dit", 675_129_632 - 256 * 1152, 256),
        ("text_mmdit", 8_056_627_520 + 192**2 * 2432, 4096),
    ],
)
def test_large_networks_have_their_published_size_and_need_no_data_to_be_described(name, parameters, batch):
    experiment = load(FOLDER / f"{name}.py")()
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    assert sum(one.size for one in jax.tree.leaves(shapes)) == parameters
    part = experiment.training
    assert part.batch == batch and part.batch_spec["mean"].shape == experiment.medium.shape
    with pytest.raises(ValueError, match=r"no \.npz files in latents"):
        part.batches(0)


def test_a_learned_variance_is_for_the_solver_that_takes_it():
    """Whoever chose the solver, and guidance or not."""
    experiment = replace(change(load(FOLDER / "toy2d.py")(), steps=2), condition=conditions.label(3))
    mean = {"apply": lambda params, x, noise, cond: x}
    pair = {"apply": lambda params, x, noise, cond: (x, 0 * x), "learned_variance": True}

    def drawn(model, solver, guided):
        made = sampler_of(change(experiment, model, solver=solver), guided=guided)
        return made(0.0, example_keys(0, 2), {"label": np.zeros(2, np.int32)}, 1.5)

    for name, guided in (("ddim", True), ("ddpm", False)):
        solver = getattr(solvers, name)()
        want = drawn(mean, solver, guided)
        np.testing.assert_array_equal(drawn(pair, solver, guided), want)
    learned = solvers.ddpm("learned")  # of frac 0, which is the small variance
    np.testing.assert_allclose(drawn(pair, learned, False), want, rtol=1e-6)
    with pytest.raises(ValueError, match="takes a learned variance"):
        drawn(mean, learned, False)
    assert solvers.restart(learned).learned_variance


def test_the_experiment_says_how_it_guides_and_what_the_condition_is():
    """Of the class's answer, of none's and of the scale; an entry without a null is kept."""
    answer = Solver(lambda x: (), lambda denoise, key, x, state, cur, nxt: (denoise(x, cur), state))
    apply = lambda params, x, noise, cond: x * 0 + (cond["label"] + cond["hint"])[:, None].astype(x.dtype)  # noqa: E731
    experiment = change(
        load(FOLDER / "toy2d.py")(),
        {"apply": apply, "prediction": parameterize.x0},
        solver=answer,
        steps=1,
        guide=lambda cond, uncond, scale: lambda x, level: 100 * cond(x, level) + scale * uncond(x, level),
    )
    label = conditions.label(3, null=7)
    hint = {"hint": label.spec["label"]}
    condition = replace(
        label, spec={**label.spec, **hint}, encode=lambda params, cond: {**cond, "hint": cond["hint"] + params}
    )
    index = np.arange(3, dtype=np.int32)
    generate = sampler_of(replace(experiment, condition=condition), guided=True)
    x = generate(np.int32(1), example_keys(0, 3), {"label": index, "hint": 10 * index}, 2.0)
    # 100 (label + hint + 1) + 2 (7 + hint + 1)
    np.testing.assert_allclose(x, np.array([[116.0] * 2, [1236.0] * 2, [2356.0] * 2]))


def test_guidance_without_null_condition():
    experiment = load(FOLDER / "imagenet64_adm.py")(batch=4, **TINY["imagenet64_adm"])
    with pytest.raises(ValueError, match="--guidance 1"):
        sampler_of(experiment, guided=True)
    with pytest.raises(ValueError, match="--guidance 1"):
        change(experiment, guidance=2.0)


def test_seed_decides_data_and_not_the_start():
    build = load(FOLDER / "toy2d.py")
    stream = build(seed=3).training.batches(0)
    third = [next(stream)["x"] for _ in range(3)][2]
    np.testing.assert_array_equal(third, next(build(seed=3).training.batches(2))["x"])
    assert not np.array_equal(third, next(build(seed=4).training.batches(2))["x"])


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match=r"fashion\.py"):
        load(FOLDER / "fashoin.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="no function `experiment"):
        load(tmp_path / "empty.py")


@pytest.mark.parametrize(("name", "classes"), [("cifar10_ddpm", 0), ("cifar10_edm", 0), ("imagenet64_adm", 1000)])
def test_unprepared_data_set_is_missed_when_it_is_read(name, classes):
    experiment = load(FOLDER / f"{name}.py")()
    assert experiment.condition.choices == classes
    with pytest.raises(ValueError, match="not prepared"):
        experiment.training.batches(0)
