"""How a run ends: the status that tells a scheduler what to do, whenever a signal comes, and what goes on afterwards."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff import train
from jaxdiff.cli import main

# A run of eight steps that compiles in no time. What the environment names happens once, at the place named.
RUN = """
import itertools, os, signal
import jax.numpy as jnp, numpy as np
import jaxdiff as jd
from jaxdiff import train
from jaxdiff.experiment import Experiment

def here(where):
    if os.environ.get("AT") == where:
        os.environ["AT"] = ""
        signal.raise_signal(signal.SIGTERM)

here("import")

def experiment(steps: int = 8, preview_every: int = 3) -> Experiment:
    here("build")

    def loss(params, key, batch):
        here("trace")
        return jnp.mean((batch["x"] - params["w"][None]) ** 2), {}

    def batches(start, rows=None):
        for number in itertools.count(start):
            here(f"batch {number}")
            if os.environ.get("AT") == f"bug {number}":
                raise KeyError("no such image")
            x = np.random.default_rng(number).normal(size=(8, 2)).astype(np.float32)
            yield {"x": x * float(os.environ.get("TIMES", 1))}

    def draw(experiment, params, path):
        here("preview")
        path.write_bytes(b"drawn")

    process = jd.processes.Flow()
    return Experiment(
        init=lambda key: {"w": jnp.ones((2,))}, apply=lambda params, x, noise, cond: x, process=process,
        row=jd.parameterize.velocity, loss=loss, optimizer=train.adamw(0.1), ema=train.ema.constant(0.5), batches=batches,
        batch=8, steps=steps, seed=0, shape=(2,), grid=lambda n: jd.grids.by_time(process, n),
        solver=jd.solvers.euler(), sample_steps=2, preview_every=preview_every, draw=draw,
    )
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("script") / "short.py"
    path.write_text(RUN)
    return str(path)


def status(*args: object) -> int:
    """How the program would end."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return stop.code
    return 0


def state(workdir: Path):
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        return checkpointer.latest(), checkpointer.restore_params("params"), checkpointer.restore_params("ema")


def records(workdir: Path, name: str = "metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def losses(workdir: Path):
    return [(record["step"], record["loss"]) for record in records(workdir)]


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert status("train", script, "--workdir", workdir) == 0
    return workdir


@pytest.mark.parametrize(
    ("at", "done"),
    # The step that is saved: the signal comes while batch 0, or the sixth, is awaited; the running step is finished.
    [("import", None), ("build", None), ("trace", None), ("batch 0", None), ("batch 5", 5), ("preview", 3)],
)
def test_sigterm_at_any_time_loses_nothing(script, straight, tmp_path, monkeypatch, capfd, at, done):
    monkeypatch.setenv("AT", at)
    workdir = tmp_path / "run"
    assert status("train", script, "--workdir", workdir) == 75
    said = capfd.readouterr().err
    assert os.environ["AT"] == ""
    if done is None:
        assert "nothing was lost" in said
    else:
        assert f"stopped by a signal after step {done} of 8; saved step {done}" in said
        assert state(workdir)[0] == done
    assert status("train", script, "--workdir", workdir) == 0
    assert losses(workdir) == losses(straight)
    for got, want in zip(jax.tree.leaves(state(workdir)), jax.tree.leaves(state(straight)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_other_commands_end_with_75_too(straight, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("AT", "preview")
    assert status("sample", straight, "--out", tmp_path / "x.png") == 75
    assert "jaxdiff: stopped by SIGTERM\n" in capfd.readouterr().err and not any(tmp_path.iterdir())


def test_a_mistake_and_a_bug(script, tmp_path, monkeypatch, capfd):
    assert status("train", script, "--workdir", tmp_path / "a", "--steps", "0") == 2
    assert status("train", script, "--workdir", tmp_path / "a", "--save-every", "0") == 2
    monkeypatch.setenv("AT", "bug 5")
    with pytest.raises(KeyError):  # 1, with a traceback
        status("train", script, "--workdir", tmp_path / "b")
    assert state(tmp_path / "b")[0] == 5 and "saved step 5 before this failure" in capfd.readouterr().err


def test_numbers_end_with_3_and_the_same_command_goes_on_after_the_bad_batches(script, straight, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    monkeypatch.setenv("TIMES", "nan")
    assert status("train", script, "--workdir", workdir, "--steps", "40") == 3
    assert "loss is nan at step 10: the updates of 10 batches in a row were not made" in capfd.readouterr().err
    step, params, _ = state(workdir)
    assert step in (10, 11) and params["w"].tolist() == [1.0, 1.0]
    monkeypatch.setenv("TIMES", "1")
    assert status("train", script, "--workdir", workdir, "--steps", "40") == 0
    assert [record["skipped"] for record in records(workdir)] == [1] * step + [0] * (40 - step)


def test_a_disk_that_stays_full_ends_with_5(script, tmp_path, monkeypatch, capfd):
    full = OSError(errno.ENOSPC, "No space left on device")

    def stays_full(*_):
        raise full

    monkeypatch.setattr("jaxdiff.train.saving.Saving._write", stays_full)
    assert status("train", script, "--workdir", tmp_path / "run") == 5
    said = capfd.readouterr().err
    assert "training goes on" in said and said.endswith("jaxdiff: No space left on device\n")
    assert len(losses(tmp_path / "run")) == 8


def test_checkpoints_have_a_rhythm_of_their_own(script, tmp_path, monkeypatch):
    saved = []
    save = train.Checkpointer.save
    monkeypatch.setattr(train.Checkpointer, "save", lambda self, state: (saved.append(int(state.step)), save(self, state)))
    assert status("train", script, "--workdir", tmp_path / "a", "--save-every", "2") == 0
    assert saved == [2, 4, 6, 8]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.png")) == ["samples-000003.png", "samples-000006.png", "samples.png"]
    saved.clear()
    assert status("train", script, "--workdir", tmp_path / "b") == 0
    assert saved == [3, 6, 8]
