"""Runs in many processes that form a cluster on this machine: the same curve, one writer, nobody left waiting."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.flags import xla_flags
from PIL import Image

from jaxdiff.cli import main
from jaxdiff.train import load_params, make_mesh, process_indices
from jaxdiff.train.lock import Lock

TESTS = Path(__file__).parents[1]
PROGRAMS = TESTS / "helpers" / "processes"
TINY = str(PROGRAMS / "tiny.py")
TRAIN = ("-m", "jaxdiff", "train", TINY)
# Several runs, one after the other, for one start of the processes.
EACH = """
import json, sys
from jaxdiff.distributed import join
from jaxdiff.cli.train import command
join()
for arguments in json.loads(sys.argv[1]):
    command(arguments)
"""


def test_one_process_reads_every_row():
    mesh = make_mesh(2, 2, 2)
    np.testing.assert_array_equal(process_indices(mesh, 8), np.arange(8))
    for size in (0, 6):
        with pytest.raises(ValueError, match=rf"data \* fsdp = 4 parts, got {size} examples"):
            process_indices(mesh, size)


def by_hand(rank, count, port):
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": f"{count}",
        "JAX_PROCESS_ID": f"{rank}",
    }


def slurm(rank, count, port):
    """What srun sets for one of `count` tasks on this machine; the port is left to be chosen by hand."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": f"{count}",
        "SLURM_PROCID": f"{rank}",
        "SLURM_LOCALID": f"{rank}",
        "JAX_COORDINATOR_PORT": f"{port}",
    }


@contextlib.contextmanager
def cluster(count, devices, *arguments, told=by_hand, folder):
    """Processes of `python *arguments`, killed for certain in the end."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = opened.getsockname()[1]
    own = {"XLA_FLAGS": xla_flags(devices), "JAX_PLATFORMS": "cpu", "NPROC": "32", "PYTHONUNBUFFERED": "1"}
    started = []
    try:
        for rank in range(count):
            environ = os.environ | own | {"XDG_CACHE_HOME": str(folder / "cache")} | told(rank, count, port)
            with (folder / f"{rank}.log").open("w") as log:
                command = [sys.executable, *arguments]
                started.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=TESTS))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(count, devices, *arguments, folder, **more):
    """Run to the end; return the statuses and what each process has said."""
    with cluster(count, devices, *arguments, folder=folder, **more) as started:
        statuses = [process.wait(timeout=240) for process in started]
    return statuses, [(folder / f"{rank}.log").read_text() for rank in range(count)]


def train(count, *runs, folder):
    """Train in several folders on eight devices; return what each process has said."""
    arguments = [[TINY, "--workdir", str(workdir), *knobs] for workdir, *knobs in runs]
    statuses, said = run(count, 8 // count, "-c", EACH, json.dumps(arguments), folder=folder)
    assert statuses == [0] * count, said
    return said


def copy(workdir, to):
    """Copy a run, without what it has drawn."""
    shutil.copytree(workdir, to, ignore=shutil.ignore_patterns("samples*"))


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
def test_the_same_curve_and_pictures_in_one_two_and_four_processes(tmp_path):
    one, two, four, again = (tmp_path / name for name in ("one", "two", "four", "again"))
    plain, within = ("--mesh", "data=4,fsdp=2"), ("--mesh", "data=1,fsdp=4,tensor=2", "--drawn", "--steps", "2")
    train(1, (one, *plain), (tmp_path / "drawn1", *within), folder=tmp_path)
    said = train(2, (two, *plain), (tmp_path / "drawn2", *within), folder=tmp_path)
    shutil.copytree(two, again)
    shutil.rmtree(again / "checkpoints" / "4")
    copy(tmp_path / "drawn2", tmp_path / "drawn4")
    last = train(4, (four, *plain), (again, *plain), (tmp_path / "drawn4", *within), folder=tmp_path)
    # From the first step on, and from the second, which two processes have saved and four have restored.
    assert "step 2 of 4" in last[0]
    assert len(losses(one)) == 4 and len(set(losses(one))) == 4
    for other in (two, four, again):
        np.testing.assert_allclose(losses(other), losses(one), rtol=0, atol=1e-6)
        assert np.abs(pixels(other / "samples.png") - pixels(one / "samples.png")).max() <= 1
    # What two have saved, one restores.
    saved, expected = (load_params(workdir, "params") for workdir in (two, one))
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    # The first process speaks and writes for all; a medium of its own saves there, too.
    for sign in ("training: 100%", "step 0 of 4", "samples.png"):
        assert sign in said[0] and sign not in said[1]
    assert (two / "experiment.py").read_text() == Path(TINY).read_text()
    drawn, alone = (np.load(tmp_path / name / "samples.npz") for name in ("drawn2", "drawn1"))
    np.testing.assert_allclose(drawn["x"], alone["x"], rtol=0, atol=1e-6)
    # A finished run draws again of what two have saved, and four and one restore. And one trains on.
    copy(tmp_path / "drawn4", tmp_path / "drawn")
    main(["train", TINY, "--workdir", str(tmp_path / "drawn"), *within])
    for other in ("drawn4", "drawn"):
        restored = np.load(tmp_path / other / "samples.npz")
        np.testing.assert_allclose(restored["x"], drawn["x"], rtol=0, atol=1e-6)
    for workdir in (one, again):
        main(["train", TINY, "--workdir", str(workdir), *plain, "--steps", "6"])
    assert len(losses(again)) == 6
    np.testing.assert_allclose(losses(again), losses(one), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_slurm_and_meshes_whose_rows_are_not_the_hosts_order(tmp_path):
    statuses, said = run(2, 4, str(PROGRAMS / "rows.py"), told=slurm, folder=tmp_path)
    assert statuses == [0, 0], said
    assert [text.splitlines()[-1] for text in said] == ["process 0 of 2: all right", "process 1 of 2: all right"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "hang"])
def test_a_process_that_fails_or_hangs_ends_the_others(tmp_path, fault):
    knobs = ("--workdir", str(tmp_path / "run"), "--fault", fault, "--hang-timeout", "3", "--preview-every", "4")
    statuses, said = run(2, 1, *TRAIN, *knobs, folder=tmp_path)
    assert 0 not in statuses
    if fault == "hang":
        assert statuses[1] == 75 and "in batches" in said[1] and "(waiting for data)" in said[1]
    else:
        assert statuses[1] == 1
        for text in said:
            assert "jaxdiff: process 1 failed first: KeyError: 'no such image'" in text


# A folder that is locked first, in which all are refused, and then another one.
REFUSED_FIRST = """
import json, sys
from jaxdiff import distributed
from jaxdiff.distributed import end_together, join
from jaxdiff.cli.train import command
distributed.HEARTBEAT = 10
join()
with end_together():
    locked, other = json.loads(sys.argv[1])
    try:
        command(locked)
    except ValueError as error:
        print(error, flush=True)
        command(other)
"""


@pytest.mark.slow
def test_one_that_is_killed_while_it_saves_ends_the_others_and_a_restart_goes_on(tmp_path):
    """The step stays invisible; and what comes before: in a folder of another trainer's all of them are refused."""
    workdir, locked = tmp_path / "run", tmp_path / "locked"
    knobs = ["--steps", "6", "--fault", "kill"]
    arguments = [[TINY, "--workdir", str(folder), *knobs] for folder in (locked, workdir)]
    with Lock(locked):
        statuses, said = run(2, 1, "-c", REFUSED_FIRST, json.dumps(arguments), folder=tmp_path)
        assert [path.name for path in locked.iterdir()] == [".lock"]
    for text in said:
        assert f"{locked} is in use by process {os.getpid()} on" in text
    assert statuses[1] == -signal.SIGKILL and statuses[0] != 0
    whole = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    assert whole == ["2"]
    main(["train", TINY, "--workdir", str(workdir), *knobs])
    assert len(losses(workdir)) == 6
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6"]
