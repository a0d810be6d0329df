"""A run goes on with more steps where its learning rate allows it; its experiment imports what lies beside it."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.devices import one_device

from jaxdiff import extend, train
from jaxdiff.cli import main
from jaxdiff.recipe import load, load_run

MINE = """
from dataclasses import replace
import numpy as np
import recipe
from jaxdiff.recipe import load

def experiment(steps: int = 1, lr: float = 1e-2, schedule: str = "constant"):
    toy = load("toy2d")(steps=steps, batch=8, width=4, preview_every=0)
    return replace(toy, training=replace(toy.training, optimizer=recipe.optimizer(lr, steps, schedule)))
"""
RECIPE = """
from jaxdiff import train

def optimizer(lr, steps, schedule):
    return train.adamw(lr, steps=steps, schedule=schedule)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    return capsys.readouterr().err


def losses(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


@pytest.mark.slow
def test_more_steps(mine, tmp_path, capsys):
    """The longer run is the one that would have been trained at once; its modules are the run's own."""
    run = tmp_path / "run"
    train_ = ["train", str(mine), "--workdir", str(run)]
    with one_device():
        main([*train_, "--steps", "2"])
        main([*train_, "--steps", "4"])
        main(["train", str(mine), "--workdir", str(tmp_path / "whole"), "--steps", "4"])
    assert losses(run) == losses(tmp_path / "whole") and len(losses(run)) == 4
    assert train.read_knobs(run)["steps"] == 4
    assert "steps must be at least 4, which this run has done; got 3" in refused(capsys, *train_, "--steps", "3")
    said = refused(capsys, *train_, "--steps", "9", "--lr", "0.5")
    assert "lr: 0.01 -> 0.5" in said and "steps: " not in said
    assert train.read_knobs(run)["steps"] == 4

    made = load(mine)(steps=8)
    abstract = train.state_shapes(made.model.init, made.training.optimizer, train.make_mesh())
    with pytest.raises(
        ValueError, match="depends on its number of steps: with --steps 8 it would not go on after step 4"
    ):
        extend.check_goes_on(run, made, load(mine)(steps=4, schedule="cosine").training.optimizer, abstract)

    (tmp_path / "recipe.py").write_text(RECIPE + "\n\n")
    assert "recipe.py differs from" in refused(capsys, *train_, "--steps", "4")
    (tmp_path / "recipe.py").unlink()
    assert load_run(run).training.steps == 4


def cosine(steps: int):
    return train.adamw(0.1, steps=steps, schedule="cosine")


def late(steps: int):
    """Flat until the last two steps, as a trapezoid ends."""
    parts = [optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0, 2)]
    return optax.chain(optax.identity(), optax.adamw(optax.join_schedules(parts, [steps - 2])))


@pytest.mark.parametrize(
    ("make", "step", "apart"),
    [
        # The rates of cosines of 4 and of 8 steps: 0 and 1/2; 1/2 and (1 + cos(pi / 4)) / 2.
        (cosine, 4, 1.0),
        (cosine, 2, 1 - 1 / (1 + np.sqrt(0.5))),
        (late, 1, 0.0),
        (late, 3, 0.5),
        (lambda steps: train.adamw(0.1, warmup_steps=2), 1, 0.0),
    ],
)
def test_how_far_the_next_updates_are_apart(make, step, apart):
    params = {"a": jnp.ones(2)}
    opt = jax.tree.map(lambda x: jnp.full_like(x, step) if x.dtype == jnp.int32 else x, make(4).init(params))
    np.testing.assert_allclose(extend.change(make(4), make(8), params, opt), apart, atol=1e-6)


def test_an_optimizer_that_refuses_spikes_is_compared_by_what_it_does_otherwise():
    params = {"a": jnp.ones(2)}
    make = lambda steps: train.skip_spikes(cosine(steps), 3.0)  # noqa: E731
    opt = jax.tree.map(lambda x: jnp.full_like(x, 2) if x.dtype == jnp.int32 else x, make(4).init(params))
    apart = extend.change(make(4), make(8), params, opt._replace(norm=jnp.float32(0.5)))
    np.testing.assert_allclose(apart, 1 - 1 / (1 + np.sqrt(0.5)), atol=1e-6)


def test_a_run_that_has_saved_nothing_may_have_any_number_of_steps(tmp_path):
    with train.Checkpointer(tmp_path):
        extend.check_goes_on(tmp_path, None, None, None)
