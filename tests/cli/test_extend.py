"""A run goes on with more steps where its learning rate allows it; its experiment imports what lies beside it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import train
from jaxdiff.cli import extend, main
from jaxdiff.experiment import load, load_run

MINE = """
from dataclasses import replace
import numpy as np
import recipe
from jaxdiff.experiment import load

def experiment(steps: int = 1, lr: float = 1e-2, schedule: str = "constant"):
    toy = load("toy2d")(steps=steps, batch=8, width=4, preview_every=100)
    return replace(toy, optimizer=recipe.optimizer(lr, steps, schedule), draw=lambda *_: None, sample_steps=2)
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
    main([*train_, "--steps", "2"])
    main([*train_, "--steps", "4"])
    main(["train", str(mine), "--workdir", str(tmp_path / "whole"), "--steps", "4"])
    assert losses(run) == losses(tmp_path / "whole") and len(losses(run)) == 4
    assert train.read_knobs(run)["steps"] == 4
    assert "steps must be at least 4, which this run has done; got 3" in refused(capsys, *train_, "--steps", "3")
    said = refused(capsys, *train_, "--steps", "9", "--lr", "0.5")
    assert "lr: 0.01 -> 0.5" in said and "steps: " not in said
    assert train.read_knobs(run)["steps"] == 4

    (tmp_path / "recipe.py").write_text(RECIPE + "\n\n")
    assert "recipe.py differs from" in refused(capsys, *train_, "--steps", "4")
    (tmp_path / "recipe.py").unlink()
    assert load_run(run).steps == 4


def test_a_schedule_that_ends_is_not_stretched(mine, tmp_path):
    """After its end and before it; where the schedules agree from here on, a run may go on."""
    build = load(mine)
    made = build(steps=4, schedule="cosine")
    mesh = train.make_mesh(devices=jax.devices()[:1])
    state = train.create(made.init, made.optimizer, jax.random.key(0), mesh)
    abstract = train.abstract(made.init, made.optimizer, mesh)

    def at(step: int):
        counts = jax.tree.map(lambda x: jnp.full_like(x, step) if x.dtype == jnp.int32 else x, state.opt)
        return state._replace(step=jnp.int32(step), opt=counts)

    def trapezoid(steps: int):
        parts = [optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0, 2)]
        return optax.chain(optax.identity(), optax.adamw(optax.join_schedules(parts, [steps - 2])))

    longer = build(steps=8, schedule="cosine")
    for name, step, before, after, goes_on in (
        ("cosine, done", 4, made.optimizer, longer.optimizer, False),
        ("cosine, on its way", 2, made.optimizer, longer.optimizer, False),
        ("flat still", 1, trapezoid(4), trapezoid(8), True),
        ("falling", 3, trapezoid(4), trapezoid(8), False),
    ):
        run = tmp_path / name
        with train.Checkpointer(run) as checkpointer:
            checkpointer.save(at(step))
        if goes_on:
            extend.check_goes_on(run, replace(longer, optimizer=after), before, abstract)
        else:
            with pytest.raises(
                ValueError, match=f"depends on its number of steps: with --steps 8 .* after step {step}"
            ):
                extend.check_goes_on(run, replace(longer, optimizer=after), before, abstract)
    with train.Checkpointer(tmp_path / "empty") as checkpointer:
        assert checkpointer.latest() is None
    extend.check_goes_on(tmp_path / "empty", longer, made.optimizer, abstract)  # nothing has been done
    assert np.isfinite(float(state.step))
