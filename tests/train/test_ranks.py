"""Signals and losses of single processes of a run: all stop after the same step, nobody waits for ever."""

import json
import signal
import time

import numpy as np
import pytest
from train.test_processes import EACH, TINY, TRAIN, cluster

LONG = ("--steps", "100000", "--preview-every", "100000", "--steps-per-call", "2")


def steps(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def trains(workdir, beyond):
    """Wait until steps beyond a number are done."""
    until(lambda: any(step > beyond for step in steps(workdir)))


def until(true):
    deadline = time.monotonic() + 240
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert true()


def ends(process):
    return process.wait(timeout=240)


@pytest.mark.slow
def test_one_of_two_is_signalled_dies_or_is_stopped(tmp_path):
    """Each start goes on from the step that both have saved; two updates a dispatch, so that no odd step is one."""
    workdir, last = tmp_path / "run", 0
    knobs = "--workdir", str(workdir), *LONG
    start = lambda *more: cluster(2, 1, *TRAIN, *knobs, *more, folder=tmp_path)  # noqa: E731
    # In Python, too, where the processes join before anything of this package handles signals.
    joined = lambda: cluster(2, 1, "-c", EACH, json.dumps([[TINY, *knobs]]), folder=tmp_path)  # noqa: E731
    for begin, signalled, number in (start, 1, signal.SIGTERM), (start, 0, signal.SIGINT), (joined, 1, signal.SIGTERM):
        with begin() as started:
            trains(workdir, last + 3)
            started[signalled].send_signal(number)
            assert [ends(process) for process in started] == [75, 75]
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
        assert steps(workdir) == list(range(1, saved + 1)) and last < saved < 100_000
        assert f"stopped by a signal after step {saved} of 100000; saved step {saved}" in said(tmp_path, 0)
        last = saved
    # The coordinator dies: the other one notices, and what is saved stays.
    with start() as started:
        trains(workdir, last + 3)
        started[0].kill()
        assert ends(started[1]) not in (0, 75)
    lost = steps(workdir)
    assert max(lost) > last
    # A process that is stopped does no harm to the others' wait: it is over after their patience.
    with start("--hang-timeout", "5") as started:
        until(lambda: steps(workdir) != lost)  # a process that is stopped earlier has not begun to train
        trains(workdir, last + 3)
        started[1].send_signal(signal.SIGSTOP)
        assert ends(started[0]) == 75
    assert "process 0 has made no progress for 5 s (waiting for the devices)" in said(tmp_path, 0)
    assert np.all(np.diff(steps(workdir)) == 1)


def said(folder, rank):
    return (folder / f"{rank}.log").read_text()
