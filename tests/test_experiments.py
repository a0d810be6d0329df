"""Every experiment builds, takes a step that moves its parameters, and draws from its own sampler."""

from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxdiff import parameterize, solvers, train
from jaxdiff.experiment import example_keys, load, sampler
from jaxdiff.solvers import Solver

FOLDER = Path(__file__).parents[1] / "experiments"
TINY = {
    "fashion": {"width": 8},
    "toy2d": {"width": 16},
    "cifar10_ddpm": {"widths": (32, 32), "blocks": 1, "source": "fashion_mnist", "size": 8},
    "cifar10_edm": {"widths": (32, 32), "blocks": 1, "source": "fashion_mnist", "size": 8},
    "imagenet64_adm": {"widths": (64, 64), "blocks": 1, "source": "fashion_mnist", "size": 8},
    "imagenet256_dit": {"width": 16, "layers": 2, "heads": 2, "latent": (4, 4, 2), "num_classes": 3},
    "text_mmdit": {"depth": 1, "latent": (4, 4, 2), "tokens": (3, 6), "vector": 5},
}

SLOW = TINY.keys() - {"toy2d"}  # U-Nets compile for long; the command line's tests train fashion


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """By its name, an experiment of little size on data at hand: latents and texts are drawn at random."""
    folder, rng = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    arrays = {name: rng.normal(size=(8, 4, 4, 2)) for name in ("mean", "std")}
    arrays |= {"tokens": rng.normal(size=(8, 3, 6)), "vector": rng.normal(size=(8, 5)), "label": rng.integers(0, 3, 8)}
    np.savez(folder / "0.npz", **arrays)

    def build(name, **knobs):
        source = {"source": str(folder)} if name in ("imagenet256_dit", "text_mmdit") else {}
        return load(FOLDER / f"{name}.py")(**TINY[name], **source, **knobs)

    return build


def test_table_is_complete():
    # Fine-tuning begins with a folder, and has tests of its own.
    assert sorted([*TINY, "finetune"]) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", TINY)
def test_common_knobs(name):
    parameters = load(FOLDER / f"{name}.py").__annotations__
    assert {"steps", "batch", "seed", "lr"} <= set(parameters)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TINY]
)
def test_first_step(name, tiny):
    experiment = tiny(name, steps=10, batch=4)
    mesh = train.make_mesh(devices=jax.devices()[:1])
    state = train.create(experiment.init, experiment.optimizer, jax.random.key(0), mesh)
    step = train.make_step(
        experiment.loss, experiment.optimizer, key=jax.random.key(1), ema=experiment.ema, frozen=experiment.frozen
    )
    before = jax.device_get(state.params)
    batches = experiment.batches(0)
    described = {name: ((4, *one.shape), one.dtype) for name, one in experiment.example.items()}
    assert experiment.batch == 4
    assert {name: (one.shape, one.dtype) for name, one in next(batches).items()} == described
    # Two steps: with warm-up the first has a learning rate of zero.
    for _ in range(2):
        state, metrics = step(state, train.shard_batch(next(batches), mesh))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    chex.assert_tree_all_finite(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, state.ema)
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    levels = experiment.grid(experiment.sample_steps)
    assert levels.sigma.shape == (experiment.sample_steps + 1,) and levels.sigma[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion", "imagenet64_adm"])
def test_sampler(name):
    experiment = load(FOLDER / f"{name}.py")(batch=4, **TINY[name])
    params = experiment.init(jax.random.key(0))
    generate = sampler(experiment, steps=2, guided=experiment.guidance != 1)
    label = jax.numpy.arange(3, dtype=jax.numpy.int32)
    x = generate(params, example_keys(0, 3), label, experiment.guidance)
    assert x.shape == (3, *experiment.shape) and np.isfinite(x).all()
    # The third picture of seed 0 is the same in another batch, at another place; the scale compiles nothing.
    alone = generate(params, example_keys(0, 3, first=2), label, experiment.guidance)
    np.testing.assert_allclose(alone[0], generate(params, example_keys(0, 3), label.at[2].set(0), 1.0)[2], atol=2e-5)
    assert generate._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
def test_samples_of_texts(tiny, tmp_path, told):
    """The network is told the text of a sample's number: the last one says nothing, as no number does."""
    said = {"tokens": np.arange(54).reshape(3, 3, 6), "vector": np.arange(15.0).reshape(3, 5)}
    np.savez(tmp_path / "said.npz", **said)
    experiment = tiny("text_mmdit", batch=4, **({"prompts": str(tmp_path / "said.npz")} if told else {}))
    assert (experiment.num_classes, experiment.null_label) == ((2, 2) if told else (0, 0))
    params = experiment.init(jax.random.key(0))
    # What is zero at first hides the text.
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params)
    x, noise = jax.numpy.ones((1, 4, 4, 2)), jax.numpy.full((1,), 300.0)
    apply = jax.jit(lambda cond: experiment.apply(experiment.whole(params), x, noise, cond))
    rows = said if told else {name: np.zeros_like(array[:1]) for name, array in said.items()}
    for label in range(len(rows["vector"])):
        direct = apply({name: array[label][None].astype(np.float32) for name, array in rows.items()})
        named = apply({"label": np.array([label], np.int32)})
        np.testing.assert_allclose(named, direct, atol=1e-5)
    np.testing.assert_allclose(apply({}), named, atol=1e-5)
    if told:
        assert np.abs(named - apply({"label": np.array([0], np.int32)})).max() > 1e-3


@pytest.mark.slow
def test_where_samples_begin_and_how_they_end():
    """The noise has the experiment's std, and the last x is decoded."""
    experiment = replace(load(FOLDER / "toy2d.py")(), apply=lambda params, x, noise, cond: x)
    still = Solver(lambda x: (), lambda denoise, key, x, state, cur, nxt: (x, state))
    seen = replace(
        experiment,
        solver=still,
        std=lambda levels: 3 * levels.sigma[0],
        decode=lambda params, x: x + params,
    )
    keys = example_keys(0, 4)
    start, moved = (
        sampler(e, guided=False)(jax.numpy.float32(5), keys, None, 1.0)
        for e in (replace(experiment, solver=still), seen)
    )
    assert np.abs(start).max() > 0.5
    np.testing.assert_allclose(moved, 3 * start + 5, rtol=1e-6)


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
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    assert sum(one.size for one in jax.tree.leaves(shapes)) == parameters
    assert experiment.batch == batch and experiment.example["mean"].shape == experiment.shape
    with pytest.raises(ValueError, match=r"no \.npz files in latents"):
        experiment.batches(0)


def test_a_learned_variance_is_for_the_solver_that_takes_it():
    """Whoever chose the solver, and guidance or not."""
    experiment = replace(load(FOLDER / "toy2d.py")(), num_classes=3, null_label=3, sample_steps=2)
    pair = replace(experiment, apply=lambda params, x, noise, cond: (x, 0 * x), learned_variance=True)
    mean = replace(experiment, apply=lambda params, x, noise, cond: x)
    draw = lambda e, **options: sampler(e, **options)(0.0, example_keys(0, 2), np.zeros(2, np.int32), 1.5)  # noqa: E731
    for name, guided in (("ddim", True), ("ddpm", False)):
        solver = getattr(solvers, name)()
        want = draw(replace(mean, solver=solver), guided=guided)
        np.testing.assert_array_equal(draw(replace(pair, solver=solver), guided=guided), want)
        np.testing.assert_array_equal(draw(pair, solver=solver, guided=guided), want)
    learned = solvers.ddpm("learned")  # of frac 0, which is the small variance
    np.testing.assert_allclose(draw(pair, solver=learned, guided=False), want, rtol=1e-6)
    with pytest.raises(ValueError, match="takes a learned variance"):
        sampler(mean, solver=learned, guided=False)
    assert solvers.restart(learned).learned_variance


def test_the_experiment_says_how_it_guides():
    """Of the class's answer, of none's and of the scale."""
    answer = Solver(lambda x: (), lambda denoise, key, x, state, cur, nxt: (denoise(x, cur), state))
    experiment = replace(
        load(FOLDER / "toy2d.py")(),
        apply=lambda params, x, noise, cond: x * 0 + cond["label"][:, None].astype(x.dtype),
        row=parameterize.x0,
        solver=answer,
        null_label=7,
        guide=lambda cond, uncond, scale: lambda x, level: 100 * cond(x, level) + scale * uncond(x, level),
    )
    x = sampler(experiment, steps=1)(None, example_keys(0, 3), jax.numpy.arange(3), 2.0)
    np.testing.assert_allclose(x, np.array([[14.0] * 2, [114.0] * 2, [214.0] * 2]))


def test_guidance_without_null_condition():
    experiment = load(FOLDER / "imagenet64_adm.py")(batch=4, **TINY["imagenet64_adm"])
    with pytest.raises(ValueError, match="--guidance 1"):
        sampler(experiment, guided=True)


def test_seed_decides_data_and_not_the_start():
    build = load(FOLDER / "toy2d.py")
    stream = build(seed=3).batches(0)
    third = [next(stream)["x"] for _ in range(3)][2]
    np.testing.assert_array_equal(third, next(build(seed=3).batches(2))["x"])
    assert not np.array_equal(third, next(build(seed=4).batches(2))["x"])


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match=r"fashion\.py"):
        load(FOLDER / "fashoin.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="no function `experiment"):
        load(tmp_path / "empty.py")


@pytest.mark.parametrize(("name", "classes"), [("cifar10_ddpm", 0), ("cifar10_edm", 0), ("imagenet64_adm", 1000)])
def test_unprepared_data_set_is_missed_when_it_is_read(name, classes):
    experiment = load(FOLDER / f"{name}.py")()
    assert experiment.num_classes == classes
    with pytest.raises(ValueError, match="not prepared"):
        experiment.batches(0)
