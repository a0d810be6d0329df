"""How a process learns of others: from the variables of the launchers, and from none where it is alone."""

import subprocess
import sys

import pytest

from jaxdiff import distributed

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HAND = {ADDRESS: "host0:1234", COUNT: "4", INDEX: "3"}
SLURM = {"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_NUM_NODES": "2"}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    """Whatever is installed here, no TPU and no client of Kubernetes is looked for."""
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {COUNT: "1"},
        SLURM | {COUNT: "1"},  # a sweep: each task a run of its own
        SLURM | {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "16"},  # the script of a job, not a step of it
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_alone(environ):
    assert distributed.arguments(environ) is None


def test_by_hand():
    assert distributed.arguments(HAND | SLURM) == {
        "coordinator_address": "host0:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("environ", "method"),
    [
        (SLURM, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
        (SLURM | {ADDRESS: "host0:1234"}, "slurm"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JOB_COMPLETION_INDEX": "1"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
    ],
)
def test_launchers(environ, method):
    from jax._src.clusters import ClusterEnv

    assert distributed.arguments(environ) == {"cluster_detection_method": method}
    # JAX ignores a method that it does not know.
    assert method in {known.name for known in ClusterEnv._cluster_types}


def test_kubernetes(monkeypatch):
    with pytest.raises(ValueError, match=r"pod 3 of a Job: set JAX_COORDINATOR_ADDRESS.*or install jax\[k8s\]"):
        distributed.arguments({"JOB_COMPLETION_INDEX": "3"})
    monkeypatch.setattr(distributed, "find_spec", lambda name: name == "kubernetes")
    assert distributed.arguments({"JOB_COMPLETION_INDEX": "0"}) == {"cluster_detection_method": "k8s"}


def test_one_task_a_node_takes_all_of_its_gpus():
    one_a_node = SLURM | {"SLURM_NTASKS": "2"}
    assert distributed.arguments(one_a_node) == {"cluster_detection_method": "slurm", "local_device_ids": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ADDRESS: ""}, "not set: JAX_COORDINATOR_ADDRESS"),
        ({COUNT: "", INDEX: ""}, "not set: JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        ({INDEX: ""}, "not set: JAX_PROCESS_ID"),
        ({COUNT: ""}, "not set: JAX_NUM_PROCESSES"),
        ({COUNT: "1"}, "JAX_PROCESS_ID must be a number from 0 to JAX_NUM_PROCESSES - 1, got '3' and '1'"),
        ({INDEX: "4"}, "got '4' and '4'"),
        ({INDEX: "-1"}, "got '-1' and '4'"),
        ({COUNT: "four"}, "got '3' and 'four'"),
        ({ADDRESS: "host0"}, "must be HOST:PORT of process 0, got 'host0'"),
        ({ADDRESS: ":80"}, "must be HOST:PORT"),
    ],
)
def test_settings_that_are_incomplete_or_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        distributed.arguments(HAND | change)


def test_a_failure_of_one_alone_is_raised_as_ever():
    with pytest.raises(KeyError), distributed.end_together():
        raise KeyError


def test_a_failure_of_one_of_many_ends_it_at_once(monkeypatch, capsys):
    statuses = []
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(distributed.os, "_exit", statuses.append)
    for error in (KeyError("lost"), SystemExit(2), SystemExit("words")):
        with distributed.end_together():
            raise error
    assert statuses == [1, 2, 1]
    assert "KeyError: 'lost'" in capsys.readouterr().err


STUCK = """
import os, sys, threading, time
from jaxdiff import cli
from jaxdiff import distributed
distributed.GRACE = 0.5
sys.argv = ["jaxdiff", "list"]
for error in (OSError(28, "the disk is full"), KeyError("lost"), KeyboardInterrupt()):
    def fail(*_):
        threading.Thread(target=time.sleep, args=(600,), name="stuck").start()
        raise error
    cli._run = fail
    child = os.fork()
    if child == 0:
        cli.main()
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_failure_ends_the_process_though_a_thread_does_not():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["5", "1", "130"], done.stderr
    for sign in ("jaxdiff: the disk is full", "KeyError: 'lost'", "KeyboardInterrupt"):
        assert sign in done.stderr
    for status in (5, 1, 130):
        assert f"ended with status {status} while there were threads: MainThread, stuck" in done.stderr
