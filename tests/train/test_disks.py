"""Real disks: one in memory that is full and read-only for a while, and one whose machine loses its power."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff import train

PROGRAMS = Path(__file__).parents[1] / "helpers" / "processes"


def mounting(program, folder):
    """What a program tells that mounts file systems, in a space of mounts of its own, which ends with it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no program unshare")
    flags = ["--mount"] if os.getuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if subprocess.run([unshare, *flags, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this user may not have mounts of their own")
    command = [unshare, *flags, sys.executable, str(PROGRAMS / program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode == 77:
        pytest.skip(f"this user may not mount that: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def state(run, step):
    with train.Checkpointer(run, read_only=True) as checkpointer:
        return [checkpointer.restore_params(part, step) for part in ("params", "ema", "opt")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trainer_on_a_disk_that_is_full_and_read_only_for_a_while(tmp_path):
    """It goes on, says so once for each save that fails, saves when it can, and is the run of a disk with room."""
    seen = mounting("disk.py", tmp_path)
    said = seen["said"]
    # 1 MB is free in the beginning, and TensorStore has written that full when the first save fails.
    warned, failed = said.index("has 0.00 GB left, and checkpoints will need 0.01 GB"), said.index("was not saved")
    assert warned < failed and seen["little"][1] == []
    # Of each failed save one line with the system's reason, and the good steps are as they were.
    assert "[Errno 28] No space left on device" in seen["full"][0] and seen["full"][1] == seen["room"]
    assert "[Errno 30] Read-only file system" in seen["read-only"][0] and seen["read-only"][1] == seen["room again"]
    attempts = ("little", "full", "read-only")
    assert all("training continues; next save" in seen[name][0] and len(seen[name][0]) < 300 for name in attempts)
    newest = [seen[name][-1] for name in ("room", "room again", "writable")]
    assert newest == sorted(set(newest)) and all(step % 20 == 0 for step in newest)  # when the next one was due
    assert said.count("lacks lines") == 1 and "Traceback" not in said
    assert seen["status"] == 75 and f"saved step {seen['end'][-1]}" in said
    # A disk without a byte left: a sentence, and the run is as it was.
    status, why, steps = seen["no room"]
    assert status == 5 and why.endswith("No space left on device\n") and steps == seen["end"]
    last = seen["end"][-1]
    pairs = zip(*(jax.tree.leaves(state(tmp_path / run, last)) for run in ("kept", "straight")), strict=True)
    assert seen["straight"] == 0 and all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_power_that_fails_at_any_moment(tmp_path):
    """A step that has its name is whole, what was saved before is there, and what has been said to be saved stays."""
    saving, first, again = mounting("power.py", tmp_path)
    labels = [label for label, _ in saving]
    assert len(labels) >= 20 and {"rename checkpoints/.saving", "rename checkpoints/1"} <= set(labels)
    assert all(set(steps.values()) == {True} and "2" in steps for _, steps in saving)
    named = labels.index("rename checkpoints/.saving")
    assert all(list(steps) == ["1", "2"] for _, steps in saving[: named + 1])
    assert all("3" in steps for _, steps in saving[labels.index("rename checkpoints/1") :])  # before another one goes
    # A text is the old one or the new one, and the new one once it has been written.
    old, new = "x" * 5000, "y" * 9000
    assert {text for _, text in first} <= {None, old} and first[-1] == ["the end", old]
    assert {text for _, text in again} <= {old, new} and again[0][1] == old and again[-1] == ["the end", new]
