"""How a run ends, whenever a signal comes: the status that tells a scheduler what to do, and what goes on then."""

import errno
import json
import os
import shutil
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
import itertools, os, signal, time
import jax, jax.numpy as jnp, numpy as np
import jaxdiff as jd
from jaxdiff import conditions, storage, train
from jaxdiff.experiment import Experiment, Medium, Model, Sampling, Training
from jaxdiff.media import Report
from jaxdiff.train.checkpoint.saving import Saving

def here(where):
    if os.environ.get("AT") == where:
        os.environ["AT"] = ""
        signal.raise_signal(signal.SIGTERM)
    if os.environ.get("STOP") == where:
        print(f"at {where}", flush=True)
        time.sleep(float(os.environ["SECONDS"]))

here("import")
if os.environ.get("STOP") == "publish":
    publish = Saving._publish
    Saving._publish = lambda self, parts: (here("publish"), publish(self, parts))
if os.environ.get("STOP") == "sync":
    sync = os.fsync
    os.fsync = lambda handle: (here("sync"), sync(handle))

def heavy(x):
    # What a compiler needs a minute for.
    for i in range(8_000):
        x = jnp.sin(x + i)
    print("at compile", flush=True)
    return x.sum()

def experiment(steps: int = 8, preview_every: int = 3) -> Experiment:
    here("build")

    def loss(params, key, batch):
        here("trace")
        if os.environ.get("STOP") == "compile":
            return heavy(params["w"]), {}
        return jnp.mean((batch["x"] - params["w"][None]) ** 2), {}

    def batches(start, rows=None):
        for number in itertools.count(start):
            here(f"batch {number}")
            if os.environ.get("AT") == f"bug {number}":
                raise KeyError("no such image")
            x = np.random.default_rng(number).normal(size=(8, 2)).astype(np.float32)
            yield {"x": x * float(os.environ.get("TIMES", 1))}

    def save(path, samples):
        here("preview")
        with storage.replacing(path) as partial_path:
            partial_path.write_bytes(b"dra")
            here("half of a picture")
            partial_path.write_bytes(b"drawn")

    def apply(params, x, noise, cond):
        if os.environ.get("STOP") == "devices":
            say = lambda x: print("at devices", flush=True) or x  # which then are busy for minutes
            x = jax.pure_callback(say, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")
            x = jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jnp.sin(x), x)
        return x

    def evaluator(folder, condition):
        def measure(samples):
            here("measure")
            return Report({"count": len(samples.x)}, "measured")
        return measure

    process = jd.processes.Flow()
    return Experiment(
        Model(lambda key: {"w": jnp.ones((2,))}, apply, process, jd.parameterize.velocity),
        Training(
            loss, train.adamw(0.1), train.ema.constant(0.5), batches, batch=8, steps=steps, preview_every=preview_every
        ),
        Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.euler(), steps=2),
        conditions.none(), Medium((2,), save, suffixes=(".png",), preview=2, evaluator=evaluator), seed=0,
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


def contents(workdir: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(workdir)): path for path in workdir.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "__pycache__" not in name}


def losses(workdir: Path):
    return [(record["step"], record["loss"]) for record in records(workdir)]


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert status("train", script, "--workdir", workdir) == 0
    return workdir


@pytest.mark.slow
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


@pytest.mark.parametrize("at", ["preview", "half of a picture"])
def test_other_commands_end_with_75_too(straight, tmp_path, monkeypatch, capfd, at):
    monkeypatch.setenv("AT", at)
    assert status("sample", straight, "--out", tmp_path / "x.png") == 75
    assert "jaxdiff: stopped by SIGTERM\n" in capfd.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, ImportError])
def test_a_signal_that_becomes_another_exception_ends_with_75(monkeypatch, capfd, kind):
    """As when it comes while a class is made, in Python 3.11, or within code that raises its own for all it catches."""

    def interrupted(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as error:
            raise kind("of the code that was interrupted") from error

    monkeypatch.setattr("jaxdiff.cli._run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == 75 and "stopped by SIGTERM" in capfd.readouterr().err


def test_a_mistake_and_a_bug(script, tmp_path, monkeypatch, capfd):
    assert status("train", script, "--workdir", tmp_path / "a", "--steps", "0") == 2
    assert status("train", script, "--workdir", tmp_path / "a", "--save-every", "0") == 2
    monkeypatch.setenv("AT", "bug 5")
    with pytest.raises(KeyError):  # 1, with a traceback
        status("train", script, "--workdir", tmp_path / "b")
    assert state(tmp_path / "b")[0] == 5 and "saved step 5 before this failure" in capfd.readouterr().err


@pytest.mark.slow
def test_numbers_end_with_3_and_the_same_command_goes_on_after_the_bad_batches(
    script, straight, tmp_path, monkeypatch, capfd
):
    workdir = tmp_path / "run"
    monkeypatch.setenv("TIMES", "nan")
    assert status("train", script, "--workdir", workdir, "--steps", "40") == 3
    assert "loss is nan at step 10: the updates of 10 consecutive batches were skipped" in capfd.readouterr().err
    step, params, _ = state(workdir)
    assert step in (10, 11) and params["w"].tolist() == [1.0, 1.0]
    monkeypatch.setenv("TIMES", "1")
    assert status("train", script, "--workdir", workdir, "--steps", "40") == 0
    assert [record["skipped"] for record in records(workdir)] == [1] * step + [0] * (40 - step)


def test_a_disk_that_stays_full_ends_with_5(script, tmp_path, monkeypatch, capfd):
    full = OSError(errno.ENOSPC, "No space left on device")

    def stays_full(*_):
        raise full

    monkeypatch.setattr("jaxdiff.train.checkpoint.saving.Saving._write", stays_full)
    assert status("train", script, "--workdir", tmp_path / "run") == 5
    said = capfd.readouterr().err
    assert "training continues" in said and said.endswith("jaxdiff: No space left on device\n")
    assert len(losses(tmp_path / "run")) == 8


@pytest.mark.slow
def test_checkpoints_have_a_rhythm_of_their_own(script, tmp_path, monkeypatch):
    saved = []
    save = train.Checkpointer.save
    monkeypatch.setattr(
        train.Checkpointer, "save", lambda self, state: (saved.append(int(state.step)), save(self, state))
    )
    assert status("train", script, "--workdir", tmp_path / "a", "--save-every", "2") == 0
    assert saved == [2, 4, 6, 8]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.png")) == [
        "samples-000003.png",
        "samples-000006.png",
        "samples.png",
    ]
    saved.clear()
    assert status("train", script, "--workdir", tmp_path / "b") == 0
    assert saved == [3, 6, 8]


@pytest.mark.slow
def test_damage_ends_with_4_where_nothing_older_is_whole(script, tmp_path, capfd):
    workdir = tmp_path / "run"
    assert status("train", script, "--workdir", workdir, "--steps", "6") == 0
    for step, ends, said in ((6, 0, "set aside as quarantine-6"), (3, 4, "is intact")):
        (path, *_) = (
            p for p in sorted((workdir / "checkpoints" / str(step)).rglob("*")) if p.is_file() and p.stat().st_size
        )
        path.write_bytes(path.read_bytes()[:-1])
        (workdir / "checkpoints" / "6").rename(workdir / "elsewhere") if step == 3 else None
        assert status("train", script, "--workdir", workdir, "--steps", "6") == ends
        assert said in capfd.readouterr().err


class Program:
    """A command in a process of its own, killed for certain in the end."""

    def __init__(self, log, *arguments, **environ):
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONUNBUFFERED": "1"}
        flags |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # what a test waits for must take its time
        self.path = log
        with log.open("w") as file:
            command = [sys.executable, "-m", "jaxdiff", *map(str, arguments)]
            self.process = subprocess.Popen(command, env=os.environ | flags | environ, stdout=file, stderr=file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def until(self, true):
        deadline = time.monotonic() + 90
        while not true(self.said()) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert true(self.said()), self.said()

    def said(self):
        return self.path.read_text()

    def signal(self, number):
        self.process.send_signal(number)

    def ends(self, within):
        began = time.monotonic()
        assert self.process.wait(timeout=30) == 75, self.said()
        assert time.monotonic() - began < within
        return self.said()


def trainer(script, workdir, **environ) -> Program:
    return Program(workdir.with_suffix(".log"), "train", script, "--workdir", workdir, **environ)


def catches(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


# By the main thread, at once or, where a callback of Python's has lost the exception, at its next step; or by the
# thread that watches.
NOTHING = "nothing was lost"


@pytest.mark.slow
def test_sigterm_during_imports_and_within_the_compiler(script, tmp_path):
    """Of which the second runs no Python for a minute."""
    with trainer(script, tmp_path / "a") as program:
        program.until(lambda said: catches(program.process.pid))
        program.signal(signal.SIGTERM)
        said = program.ends(within=20)
        assert NOTHING in said, said
    with trainer(script, tmp_path / "b", STOP="compile") as program:
        program.until(lambda said: "at compile" in said)
        time.sleep(8)  # its gradient is traced first
        program.signal(signal.SIGTERM)
        said = program.ends(within=15)
        assert NOTHING in said, said


@pytest.mark.slow
def test_a_signal_while_data_is_awaited_and_a_second_one_while_saving(script, tmp_path):
    workdir = tmp_path / "run"
    # A loader that takes ten minutes for a batch.
    with trainer(script, workdir, STOP="batch 4", SECONDS="600") as program:
        program.until(lambda said: "at batch 4" in said)
        program.signal(signal.SIGINT)
        assert "stopped by a signal after step 4 of 8; saved step 4" in program.ends(within=20)
    # A disk that takes ten minutes for a checkpoint, and a person who does not want to wait.
    with trainer(script, workdir, STOP="publish", SECONDS="600", AT="batch 5") as program:
        program.until(lambda said: "at publish" in said)
        program.signal(signal.SIGTERM)
        program.until(lambda said: "saving step 5: waiting for its end; Ctrl-C aborts it" in said)
        program.signal(signal.SIGINT)
        assert "interrupted again: saving step 5 is aborted; earlier saves are intact" in program.ends(within=5)
    # A slow one, and a scheduler that signals twice.
    with trainer(script, workdir, STOP="publish", SECONDS="2", AT="batch 5") as program:
        program.until(lambda said: "at publish" in said)
        program.signal(signal.SIGTERM)
        assert "saved step 5" in program.ends(within=20)
    # kill -9, with steps in the metrics that are in no checkpoint.
    with trainer(script, workdir, STOP="batch 7", SECONDS="600") as program:
        program.until(lambda said: "at batch 7" in said)
    assert state(workdir)[0] == 6 and [step for step, _ in losses(workdir)][-1] > 6
    # With one device each: eight, as this process has, round sums in another order.
    for place in (workdir, tmp_path / "straight"):
        with trainer(script, place) as program:
            assert program.process.wait(timeout=90) == 0, program.said()
    assert losses(workdir) == losses(tmp_path / "straight")
    for got, want in zip(jax.tree.leaves(state(workdir)), jax.tree.leaves(state(tmp_path / "straight")), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_a_signal_while_samples_are_drawn_measured_and_written(script, straight, tmp_path):
    """In a preview of a trainer, in `eval` and in `sample`: what was there stays, and the same command works then."""
    workdir = tmp_path / "run"
    with trainer(script, workdir, STOP="half of a picture", SECONDS="600") as program:
        program.until(lambda said: "at half of a picture" in said)
        program.signal(signal.SIGINT)
        assert "stopped by a signal after step 3 of 8; saved step 3" in program.ends(within=20)
    assert not [path for path in workdir.rglob("*") if path.suffix == ".png" or path.name[0] == "."]
    shutil.copytree(straight, workdir, dirs_exist_ok=True)
    (workdir / "eval.json").write_text("of an earlier time")
    before = contents(workdir)
    evaluation = ("eval", workdir, "--num", "4", "--batch", "4")
    for number, stop in ((signal.SIGTERM, "measure"), (signal.SIGINT, "sync")):
        with Program(tmp_path / "eval.log", *evaluation, STOP=stop, SECONDS="600") as program:
            program.until(lambda said, stop=stop: f"at {stop}" in said)
            program.signal(number)
            assert f"jaxdiff: stopped by {number.name}" in program.ends(within=20)
        assert contents(workdir) == before
    with Program(tmp_path / "sample.log", "sample", workdir, STOP="devices") as program:
        program.until(lambda said: "at devices" in said)
        program.signal(signal.SIGTERM)
        assert NOTHING in program.ends(within=15)
    assert contents(workdir) == before
    assert status(*evaluation) == 0 and status("sample", workdir) == 0
    assert json.loads((workdir / "eval.json").read_text()) == {"count": 4}
    assert contents(workdir).keys() == before.keys() | {"samples-0.png"}
