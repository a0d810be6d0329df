"""A run that is disturbed every 20 to 40 seconds ends as the undisturbed one does, bit for bit.

It takes as many minutes as the variable JAXDIFF_SOAK says, and is skipped without it.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.flags import xla_flags

from jaxdiff import train, trees

TESTS = Path(__file__).parents[1]
EXPERIMENT = str(TESTS / "helpers" / "processes" / "soak.py")
MINUTES = float(os.environ.get("JAXDIFF_SOAK", 0))
PAUSE = 0.1  # seconds of a batch, so that the disturbed run does not end before its time
STEPS = int(MINUTES * 60 / PAUSE)
RESTARTS = {"early": {75, -signal.SIGTERM}, "terminate": {75}, "interrupt": {75}, "twice": {75, 130}, "stall": {75}}


class Run:
    """A run in a folder, and the process that trains it at the time."""

    def __init__(self, workdir, seed=0):
        self.workdir, self.process = workdir, None
        self.rng = np.random.default_rng(seed)
        self.log = workdir.with_suffix(".log")
        self.stalls = workdir.with_suffix(".stall")

    def command(self, pause, log):
        own = {"XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(self.workdir.parent / "cache")}
        own |= {"SOAK_PAUSE": str(pause), "SOAK_STALL": str(self.stalls), "PYTHONUNBUFFERED": "1"}
        own |= {"JAX_ENABLE_COMPILATION_CACHE": "true"}
        command = [sys.executable, "-m", "jaxdiff", "train", EXPERIMENT, "--workdir", str(self.workdir)]
        command += ["--steps", str(STEPS), "--save-every", "40", "--hang-timeout", "15"]
        with log.open("a") as file:
            return subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file, cwd=TESTS.parent)

    def start(self, pause=PAUSE):
        self.process = self.command(pause, self.log)

    def end(self, timeout=600):
        return self.process.wait(timeout=timeout)

    def trained(self):
        """How many bytes of metrics there are: they grow once it trains."""
        path = self.workdir / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def wait_for_training(self):
        before, deadline = self.trained(), time.monotonic() + 600
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.trained() not in (0, before):  # less, where lines of lost steps are removed
                return
            time.sleep(0.05)
        raise AssertionError(f"it does not train: {self.process.poll()}\n{self.log.read_text()[-3000:]}")

    def steps(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


# Each disturbs a run that trains, and says by which statuses it may end; None, if it goes on.
def early(run):
    run.process.kill()
    run.end()
    run.start()
    time.sleep(run.rng.uniform(0, 5))
    run.process.send_signal(signal.SIGTERM)


def terminate(run):
    run.process.send_signal(signal.SIGTERM)


def interrupt(run):
    run.process.send_signal(signal.SIGINT)


def twice(run):
    interrupt(run)
    time.sleep(run.rng.uniform(0, 0.2))
    interrupt(run)


def stall(run):
    run.stalls.touch()


def kill(run):
    run.process.kill()


def kill_while_saving(run):
    """Once a name that is no step's appears among the checkpoints."""
    folder, deadline = run.workdir / "checkpoints", time.monotonic() + 20
    while time.monotonic() < deadline and all(path.name.isdecimal() for path in folder.iterdir()):
        time.sleep(0.002)
    time.sleep(run.rng.uniform(0, 0.3))
    run.process.kill()


def damage(run):
    """Kill it, and spoil its newest checkpoint, or put beside it what is none."""
    run.process.kill()
    run.end()
    if len(run.steps()) < 2:
        return
    newest = run.workdir / "checkpoints" / str(run.steps()[-1])
    later = newest.with_name(str(int(newest.name) + 1000))
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[run.rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    kind = run.rng.integers(7)
    if kind == 0:
        content[run.rng.integers(len(content))] ^= 1 << run.rng.integers(8)
        path.write_bytes(content)
    elif kind == 1:
        path.write_bytes(content[: len(content) // 2])
    elif kind == 2:
        path.write_bytes(b"")
    elif kind == 3:
        path.unlink()
    elif kind == 4:
        later.mkdir()
    elif kind == 5:
        shutil.copytree(newest, later)
    else:
        later.symlink_to("/etc")


def full_disk(run):
    """No file gets longer than the log will be meanwhile, until a checkpoint has failed."""
    failures = lambda: run.log.read_text().count("was not saved")  # noqa: E731
    before, deadline = failures(), time.monotonic() + 60
    limits = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (run.trained() + 200_000, limits[1]))
    while failures() == before and time.monotonic() < deadline and run.process.poll() is None:
        time.sleep(0.2)
    if run.process.poll() is None:
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)


def stop_for_a_while(run):
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(run.rng.uniform(1, 5))
    run.process.send_signal(signal.SIGCONT)


def second_trainer(run):
    """It is refused."""
    log = run.log.with_suffix(".second")
    second = run.command(0, log)
    try:
        assert second.wait(timeout=600) == 2, log.read_text()[-3000:]
    finally:
        second.kill()


GO_ON = (full_disk, stop_for_a_while, second_trainer)
FAULTS = (early, terminate, interrupt, twice, stall, kill, kill_while_saving, damage, *GO_ON)


def disturb(run):
    """Train until the time is up; return how often each fault was there."""
    seen, end = dict.fromkeys((fault.__name__ for fault in FAULTS), 0), time.monotonic() + 60 * MINUTES
    order = itertools.chain.from_iterable(run.rng.permutation(len(FAULTS)) for _ in itertools.count())
    run.start()
    for index in order:
        fault, due = FAULTS[index], time.monotonic() + run.rng.uniform(20, 40)
        run.wait_for_training()
        while time.monotonic() < min(due, end):
            if run.process.poll() is not None:  # of itself only when the machine is too slow for its patience
                assert run.process.returncode == 75, run.log.read_text()[-3000:]
                run.start()
            time.sleep(0.1)
        if time.monotonic() >= end:
            run.process.kill()
            run.end()
            return seen
        print(f"{time.strftime('%H:%M:%S')} {fault.__name__}, checkpoints {run.steps()}", flush=True)
        fault(run)
        seen[fault.__name__] += 1
        if fault not in GO_ON:
            status, allowed = run.end(), RESTARTS.get(fault.__name__, {-signal.SIGKILL})
            assert status in allowed, f"{fault.__name__}: {status}\n{run.log.read_text()[-3000:]}"
            run.start()
    raise AssertionError


def end(workdir):
    """The newest step, and its arrays by name."""
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        parts = {part: checkpointer.restore_params(part) for part in ("params", "ema", "opt")}
        return checkpointer.latest(), {name: np.asarray(x).tobytes() for name, x in trees.flatten(parts).items()}


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "images_per_s"} for line in lines]


def test_what_is_compared_has_every_bit(tmp_path):
    """Of two checkpoints that differ by the smallest normal number in one entry of the optimizer."""
    _, state, _ = toy.new()
    leaves, tree = jax.tree.flatten(state.opt)
    i = next(i for i, x in enumerate(leaves) if x.size > 1)
    leaves[i] = leaves[i].at[(0,) * leaves[i].ndim].set(np.finfo(np.float32).tiny)
    for name, saved in (("a", state), ("b", state), ("c", state._replace(opt=jax.tree.unflatten(tree, leaves)))):
        with train.Checkpointer(tmp_path / name) as checkpointer:
            checkpointer.save(saved._replace(step=jnp.int32(3)))
    (step, a), same, (_, c) = (end(tmp_path / name) for name in "abc")
    assert same == (3, a) and step == 3 and a.keys() == c.keys()
    (other,) = [name for name in a if a[name] != c[name]]
    assert other.startswith("opt")


@pytest.mark.slow
@pytest.mark.skipif(not MINUTES, reason="JAXDIFF_SOAK is not set")
@pytest.mark.timeout(300 * MINUTES + 1800)
def test_the_disturbed_run_ends_as_the_other(tmp_path):
    disturbed, straight = Run(tmp_path / "disturbed"), Run(tmp_path / "straight")
    try:
        seen = disturb(disturbed)
        for run in (disturbed, straight):
            run.start(pause=0)
            assert run.end(timeout=600 + STEPS) == 0, run.log.read_text()[-3000:]
    finally:
        for run in (disturbed, straight):
            if run.process is not None:
                run.process.kill()
                run.process.wait()
    print(json.dumps(seen))
    (step, a), (_, b) = end(disturbed.workdir), end(straight.workdir)
    assert step == STEPS and a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    assert records(disturbed.workdir) == records(straight.workdir)
