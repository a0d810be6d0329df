"""Processes that read: however many they are the stream is the same, and none outlives the one that it reads for."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import reader

ROOT = Path(__file__).parents[2]


def alive(pid):
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the kernel who lives")
def test_one_that_dies_is_told_of_and_none_outlives_its_trainer():
    command = [sys.executable, reader.__file__]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    pids = []
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, text=True, env=environ) as trainer:
        try:
            lines = iter(trainer.stdout.readline, "")
            whole = itertools.islice(reader.stream(0), reader.COUNT)
            mine = ({name: value[list(reader.ROWS)] for name, value in batch.items()} for batch in whole)
            assert next(lines).strip() == reader.digest(mine)
            assert "RuntimeError" in next(lines)
            pids = [int(pid) for pid in next(lines).split()]
            assert pids and all(map(alive, pids))
        finally:
            trainer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
