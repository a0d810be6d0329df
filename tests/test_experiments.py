"""Every experiment builds, takes a step that moves its parameters, and draws from its own sampler."""

from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxdiff import train
from jaxdiff.experiment import example_keys, load, sampler
from jaxdiff.solvers import Solver

FOLDER = Path(__file__).parents[1] / "experiments"
TINY = {
    "fashion": {"width": 8},
    "toy2d": {"width": 16},
    "cifar10_ddpm": {"widths": (32, 32), "blocks": 1, "source": "fashion_mnist", "size": 8},
    "cifar10_edm": {"widths": (32, 32), "blocks": 1, "source": "fashion_mnist", "size": 8},
    "imagenet64_adm": {"widths": (64, 64), "blocks": 1, "source": "fashion_mnist", "size": 8},
}

SLOW = TINY.keys() - {"toy2d"}  # U-Nets compile for long; the command line's tests train fashion


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
def test_first_step(name):
    experiment = load(FOLDER / f"{name}.py")(steps=10, batch=4, **TINY[name])
    mesh = train.make_mesh(devices=jax.devices()[:1])
    state = train.create(experiment.init, experiment.optimizer, jax.random.key(0), mesh)
    step = train.make_step(experiment.loss, experiment.optimizer, key=jax.random.key(1), ema=experiment.ema)
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
