import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train import toy

from jaxdiff import train


def fit(steps=6, where="one", start=None, **arguments):
    mesh, state, step = toy.new(where)
    records = []
    source = arguments.pop("source", None) or toy.batches(start=int((start or state).step))
    state = train.fit(step, start or state, source, steps=steps, mesh=mesh, **{"log": records.append} | arguments)
    return state, records


@pytest.mark.parametrize("where", ["one", "mixed"])
def test_equals_calling_the_step(where):
    state, records = fit(where=where)
    mesh, expected, step = toy.new(where)
    for number, batch in zip(range(6), toy.batches(), strict=False):
        expected, metrics = step(expected, train.shard_batch(batch, mesh))
        assert records[number]["step"] == number + 1
        assert records[number]["loss"] == float(metrics["loss"])
        assert records[number]["grad_norm"] == float(metrics["grad_norm"])
    assert len(records) == 6
    assert all(record["images_per_s"] > 0 for record in records[1:])
    assert toy.same(state, expected)


def test_shows_compilation_then_progress(capfd):
    fit()
    shown = capfd.readouterr().err
    assert "compiling:   0%" in shown
    assert "training: 100%" in shown
    assert "6/6" in shown
    assert "loss 0." in shown or "loss 1." in shown
    assert "images/s" in shown


def test_saves_and_previews_when_told(tmp_path):
    seen = []
    with train.Checkpointer(tmp_path, keep=5) as checkpointer:
        fit(
            7,
            checkpointer=checkpointer,
            save_every=3,
            preview=lambda state: seen.append(int(state.step)),
            preview_every=2,
        )
    assert seen == [2, 4, 6, 7]
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def test_resumes_bit_for_bit(tmp_path):
    straight, all_records = fit(6)
    with train.Checkpointer(tmp_path) as checkpointer:
        fit(4, checkpointer=checkpointer)
    with train.Checkpointer(tmp_path) as checkpointer:
        mesh = toy.mesh("one")
        start = checkpointer.restore(train.abstract(toy.init, toy.ADAMW, mesh))
        state, records = fit(6, start=start, checkpointer=checkpointer)
        assert checkpointer.latest() == 6
    assert toy.same(state, straight)
    assert [r["loss"] for r in records] == [r["loss"] for r in all_records[4:]]


def test_a_finished_run_stays_as_it_is(tmp_path):
    with train.Checkpointer(tmp_path) as checkpointer:
        state, _ = fit(2, checkpointer=checkpointer)
        again, records = fit(2, start=state, checkpointer=checkpointer)
    assert again is state
    assert records == []


@pytest.mark.parametrize("name", ["steps", "save_every", "preview_every"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        fit(**{name: value})


def test_batches_that_end_early():
    with pytest.raises(ValueError, match="ended after step 2"):
        fit(source=iter([batch for _, batch in zip(range(2), toy.batches(), strict=False)]))


@pytest.mark.parametrize(("where", "poison"), [("one", 4), ("mixed", 2)])
def test_loss_that_is_not_finite_stops_and_spoils_nothing(tmp_path, where, poison):
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match=f"loss is nan at step {poison + 1}"):
            fit(9, where, source=toy.batches(poison=poison), checkpointer=checkpointer, save_every=1)
        assert checkpointer.latest() == poison
        restored = checkpointer.restore(train.abstract(toy.init, toy.ADAMW, toy.mesh("one")))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_and_saves(tmp_path, number, capfd):
    def log(record):
        if record["step"] == 3:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with train.Checkpointer(tmp_path) as checkpointer:
        state, _ = fit(50, checkpointer=checkpointer, log=log)
        saved = checkpointer.latest()
        assert toy.same(checkpointer.restore(state), state)
    assert 3 <= saved == int(state.step) <= 5
    assert f"stopped by a signal after step {saved} of 50; saved step {saved}" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_second_interrupt_interrupts():
    def log(record):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(50, log=lambda record: [log(record), log(record)])


def test_metrics_file(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    fit(5, log=train.metrics_file(path))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    log = train.metrics_file(path, start=3)
    log({"step": 4, "loss": 0.5})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[3] == {"step": 4, "loss": 0.5}


def start_process(workdir, steps, where, *rank_and_port):
    script = str(Path(__file__).with_name("resume.py"))
    arguments = [str(argument) for argument in (workdir, steps, where, *rank_and_port)]
    return subprocess.Popen([sys.executable, script, *arguments], stderr=subprocess.PIPE, text=True)


def finish(*processes):
    try:
        for process in processes:
            _, shown = process.communicate(timeout=300)
            assert process.returncode == 0, shown
    finally:
        for process in processes:
            process.kill()


def result(workdir, where="one"):
    """Return the last state and the losses of a finished run."""
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        state = checkpointer.restore(train.abstract(toy.init, toy.ADAMW, toy.mesh(where)))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return state, [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["one", "mixed"])
def test_new_process_goes_on_bit_for_bit(tmp_path, where):
    """Images from the pipeline, so that their order is part of what must be the same."""
    finish(start_process(tmp_path / "straight", 9, where))
    finish(start_process(tmp_path / "resumed", 4, where))
    finish(start_process(tmp_path / "resumed", 9, where))
    (straight, expected), (resumed, losses) = (result(tmp_path / name) for name in ("straight", "resumed"))
    assert int(straight.step) == 9
    assert toy.same(straight, resumed)
    assert losses == expected
    assert len(losses) == 9


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one_and_resume_in_one(tmp_path):
    finish(start_process(tmp_path / "one", 5, "mixed"))
    port = free_port()
    finish(*(start_process(tmp_path / "two", 4, "mixed", rank, port) for rank in range(2)))
    finish(start_process(tmp_path / "two", 5, "mixed"))
    (one, expected), (two, losses) = (result(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(losses, expected, atol=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    port, path = free_port(), tmp_path / "metrics.jsonl"
    processes = [start_process(tmp_path, 100_000, "mixed", rank, port) for rank in range(2)]
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].terminate()
    finish(*processes)
    state, losses = result(tmp_path)
    assert 3 < int(state.step) == len(losses) < 100_000
