import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy

from jaxdiff import signals, train
from jaxdiff.train import display, loop


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


class Running:
    """Of a dispatch that is not known to have finished until it is waited for."""

    is_ready = staticmethod(lambda: False)
    __array__ = lambda *_, **__: np.zeros((), np.int32)  # noqa: E731


def metrics_of(skipped):
    return {"loss": np.float32(1), "skipped": skipped, "grad_norm": np.float32(1)}


def test_steps_that_are_seen_at_one_moment_share_its_rate(monkeypatch):
    """The last two dispatches are waited for together; the second is then there at once."""
    clock, records = iter((10.0, 10.0, 12.0, 12.001)), []
    monkeypatch.setattr(display, "time", SimpleNamespace(perf_counter=lambda: next(clock, 12.001)))
    with display.Display(0, 3, records.append, 10) as shown:
        for step, ahead in (1, 0), (2, 2), (3, 0):
            shown.push(step, metrics_of(Running()), 8)
            shown.flush(ahead)
    assert [record["step"] for record in records] == [1, 2, 3]
    np.testing.assert_allclose([record["images_per_s"] for record in records[1:]], 16 / 2.001)


def test_steps_that_have_finished_are_not_left_waiting(monkeypatch):
    now, records = [10.0], []
    monkeypatch.setattr(display, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with display.Display(0, 9, records.append, 10) as shown:
        shown.push(1, metrics_of(np.int32(0)), 8)
        assert shown.flush(0)
        for step in 2, 3:
            shown.push(step, metrics_of(jnp.int32(0)), 8)
        shown.push(4, metrics_of(Running()), 8)
        assert not shown.due(3) and shown.due(2)
        now[0] += 2 * display.PERIOD
        assert shown.due(3)
        assert shown.flush(3)
        assert [record["step"] for record in records] == [1, 2, 3]
        assert not shown.flush(3)
        # Several processes end at the same step, whenever each of them finds its dispatches done.
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        now[0] += display.PERIOD / 2
        shown.push(5, metrics_of(jnp.int32(0)), 8)
        assert shown.flush(1) and shown.due(0) and not shown.due(1)


def test_short_steps_are_waited_for_several_at_a_time(monkeypatch):
    """At most eight are in the queue; what is logged is the same."""
    waits, flush = [], display.Display.flush
    monkeypatch.setattr(loop, "QUEUED", 1e9)
    monkeypatch.setattr(display, "PERIOD", 1e9)
    monkeypatch.setattr(display.Display, "flush", lambda self, ahead: waits.append(ahead) or flush(self, ahead))
    state, records = fit(24)
    assert waits[:4] == [0] * 4 and len(waits) <= 4 + 20 / 5 + 1
    assert [record["step"] for record in records] == [*range(1, 25)]
    monkeypatch.setattr(loop, "QUEUED", 0.0)
    again, expected = fit(24)
    assert toy.same(state, again)
    assert [record["loss"] for record in records] == [record["loss"] for record in expected]


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


def dispatching(count=2):
    mesh, state, _ = toy.new()
    average = train.ema.constant(0.9)
    step = train.make_step(toy.noisy_loss, toy.ADAMW, key=jax.random.key(1), ema=average, steps_per_call=count)
    return mesh, state, step


@pytest.mark.slow
def test_several_updates_in_a_dispatch(tmp_path):
    """They log, save, preview and keep snapshots as single ones do, at multiples."""
    mesh, state, step = dispatching()
    records, seen = [], {"preview": [], "snapshot": []}
    with train.Checkpointer(tmp_path, keep=5) as checkpointer:
        state = train.fit(
            step, state, toy.batches(), steps=6, mesh=mesh, checkpointer=checkpointer, save_every=4, preview_every=2,
            snapshot_every=4, log=records.append,
            **{name: lambda state, steps=steps: steps.append(int(state.step)) for name, steps in seen.items()},
        )  # fmt: skip
        assert checkpointer.steps() == [4, 6]
    assert seen == {"preview": [2, 4, 6], "snapshot": [4, 6]}
    want, single = fit(6)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([r["loss"] for r in records], [r["loss"] for r in single], rtol=1e-6)
    assert records[2]["images_per_s"] == records[3]["images_per_s"] > 0
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 5}, "steps must be a multiple of steps_per_call=2, got 5"),
        ({"preview_every": 3, "preview": print}, "preview_every must be a multiple of steps_per_call=2, got 3"),
        ({"snapshot_every": 3, "snapshot": print}, "snapshot_every must be a multiple of steps_per_call=2, got 3"),
    ],
)
def test_counts_that_dispatches_do_not_divide(arguments, message):
    mesh, state, step = dispatching()
    with pytest.raises(ValueError, match=message):
        train.fit(step, state, toy.batches(), **{"steps": 6, "mesh": mesh} | arguments)


@pytest.mark.slow
def test_batches_that_end_within_a_dispatch():
    mesh, state, step = dispatching()
    with pytest.raises(ValueError, match="ended after step 3"):
        train.fit(step, state, itertools.islice(toy.batches(), 3), steps=6, mesh=mesh)


def test_resumes_bit_for_bit(tmp_path):
    straight, all_records = fit(6)
    with train.Checkpointer(tmp_path) as checkpointer:
        fit(4, checkpointer=checkpointer)
    with train.Checkpointer(tmp_path) as checkpointer:
        mesh = toy.mesh("one")
        start = checkpointer.restore(train.state_shapes(toy.init, toy.ADAMW, mesh))
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


@pytest.mark.parametrize("name", ["steps", "max_skipped", "save_every", "preview_every", "snapshot_every"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        fit(**{name: value})


def test_batches_that_end_early():
    with pytest.raises(ValueError, match="ended after step 2"):
        fit(source=iter([batch for _, batch in zip(range(2), toy.batches(), strict=False)]))


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


def train_elsewhere(workdir, steps, where):
    script = str(Path(__file__).parents[1] / "helpers" / "processes" / "resume.py")
    command = [sys.executable, script, str(workdir), str(steps), where]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def result(workdir, where="one"):
    """Return the last state and the losses of a finished run."""
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        state = checkpointer.restore(train.state_shapes(toy.init, toy.ADAMW, toy.mesh(where)))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return state, [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["one", "mixed"])
def test_new_process_goes_on_bit_for_bit(tmp_path, where):
    """Images from the pipeline, so that their order is part of what must be the same."""
    train_elsewhere(tmp_path / "straight", 9, where)
    train_elsewhere(tmp_path / "resumed", 4, where)
    train_elsewhere(tmp_path / "resumed", 9, where)
    (straight, expected), (resumed, losses) = (result(tmp_path / name) for name in ("straight", "resumed"))
    assert int(straight.step) == 9
    assert toy.same(straight, resumed)
    assert losses == expected
    assert len(losses) == 9


@pytest.mark.slow
def test_a_step_without_an_end_ends_the_run(monkeypatch, capfd):
    """Data that never comes is one; a first step that compiles for longer than the patience is not."""
    mesh, state, step = toy.new()
    ended, early = [], []
    monkeypatch.setattr("jaxdiff.train.watchdog.os._exit", ended.append)

    def batches():
        for number, batch in enumerate(toy.batches()):
            if number == 0:
                time.sleep(1.2)  # the first step may take long: this stands for its compilation
                early.extend(ended)
            if number == 3:
                wait_for(ended)
            yield batch

    def wait_for(ended):
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)

    train.fit(step, state, batches(), steps=4, mesh=mesh, hang_timeout=1.0)
    assert early == [] and ended == [75]
    assert "in wait_for" in capfd.readouterr().err


@pytest.mark.slow
def test_storage_that_hangs_ends_the_run(tmp_path, monkeypatch, capfd):
    """At the first save that waits for it: here at once."""
    mesh, state, step = toy.new()
    ended = []
    monkeypatch.setattr("jaxdiff.train.watchdog.os._exit", ended.append)

    class Hangs:
        folder = tmp_path
        failure = wait = staticmethod(lambda: None)
        room = staticmethod(lambda state: (0, 0))

        def save(self, state):
            deadline = time.monotonic() + 20
            while not ended and time.monotonic() < deadline:
                time.sleep(0.01)

    train.fit(step, state, toy.batches(), steps=1, mesh=mesh, checkpointer=Hangs(), hang_timeout=0.2)
    assert ended[0] == 75
    said = capfd.readouterr().err
    assert "has made no progress for 2 s (saving step 1), and ends with status 75" in said and "in save" in said


def test_what_a_run_is_doing_is_known():
    """A step that is called waits for the devices, also where the call itself does."""
    mesh, state, step = toy.new()
    seen, handlers = [], signals.Signals()

    class Seen:
        steps_per_call = 1

        def __call__(self, state, batch):
            seen.append(handlers.doing)
            return step(state, batch)

    def batches():
        for batch in toy.batches():
            seen.append(handlers.doing)
            yield batch

    train.fit(Seen(), state, batches(), steps=3, mesh=mesh, signals=handlers)
    data, devices = "waiting for data", "waiting for the devices"
    assert seen == [data, "compiling the step", data, devices, data, devices]


def test_metrics_come_in_bundles_and_before_each_save(tmp_path, monkeypatch):
    """What is logged does not depend on when; the first steps, which are waited for, are logged one by one."""
    one_by_one, bundled, seen = [], [], {}
    monkeypatch.setattr("jaxdiff.train.display.PERIOD", 0.0)
    fit(12, log=one_by_one.append)
    monkeypatch.setattr("jaxdiff.train.display.PERIOD", float("inf"))

    def batches():
        for number, batch in enumerate(toy.batches()):
            seen[number] = len(bundled)
            yield batch

    class Disk:
        folder = tmp_path
        failure = wait = staticmethod(lambda: None)
        room = staticmethod(lambda state: (0, 0))
        save = staticmethod(lambda state: seen.setdefault("saved", len(bundled)))

    fit(12, source=batches(), log=bundled.append, checkpointer=Disk(), save_every=10)
    assert seen[6] == seen[9] < 6 and seen["saved"] == 10
    assert [(r["step"], r["loss"], r["skipped"]) for r in bundled] == [
        (r["step"], r["loss"], r["skipped"]) for r in one_by_one
    ]


def test_a_failure_loses_no_metrics(monkeypatch):
    monkeypatch.setattr("jaxdiff.train.display.PERIOD", float("inf"))
    records = []
    with pytest.raises(ValueError, match="ended after step 9"):
        fit(12, source=itertools.islice(toy.batches(), 9), log=records.append)
    assert [record["step"] for record in records] == list(range(1, 10))
