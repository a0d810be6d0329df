"""Runs of several processes: they join before any use of a device, and end together after a failure."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from jaxdiff.faults import AGAIN

# Set by hand: all three, or JAX_NUM_PROCESSES=1 for a single process in any environment.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Seconds until a dead process is detected. JAX's default of 100 is long if each second costs a thousand chips.
HEARTBEAT = 30
# Seconds that an orderly exit may take after a failure.
GRACE = 10.0


def join() -> bool:
    """Join the other processes of this run, if the environment describes any; call it before any use of a device.

    The environment has JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; or it is
    one that JAX detects: a step of SLURM or Open MPI, a TPU slice on Google's VMs or Kubernetes, or an indexed Job of
    Kubernetes.

    Returns:
        whether there are other processes.

    Raises:
        ValueError: the variables are incomplete or not numbers, or a Job's pods cannot find each other.
    """
    settings = arguments(os.environ)
    if settings is None:
        return False
    import jax

    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **settings)
    return jax.process_count() > 1


def arguments(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`, or None for a single process.

    Args:
        environ: the environment variables.

    Raises:
        ValueError: as for `join`.
    """
    found = None if environ.get(COUNT) or environ.get(INDEX) else _launched(environ)
    return found or _by_hand(environ)


def gather(tree: Any) -> Any:
    """Collect arrays that are distributed over processes, as numpy arrays; all processes must call this."""
    import jax
    from jax.experimental import multihost_utils

    def collect(x: Any) -> Any:
        shared = isinstance(x, jax.Array) and not x.is_fully_addressable
        return multihost_utils.process_allgather(x, tiled=True) if shared else x

    return jax.tree.map(collect, tree)


@contextmanager
def end_together() -> Iterator[None]:
    """End a failed process immediately, so that the others end, too; each prints which process failed first.

    An orderly exit would wait for the others, while they wait for this one within a collective (jax#38503).
    """
    try:
        yield
    except BaseException as error:
        import jax

        if not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        if not (isinstance(error, SystemExit) and error.code in (0, None, AGAIN)):
            print(f"jaxdiff: {_first_to_fail(error)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def _first_to_fail(error: BaseException) -> str:
    """Return which process failed first: the first one to record it in the coordination service."""
    import jax
    from jax._src import distributed  # there is no public way to JAX's coordination service

    cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
    found: list[str] = []

    def ask() -> None:
        client: Any = distributed.global_state.client
        mine = f"process {jax.process_index()} failed first: {type(cause).__name__}: {cause}".splitlines()[0][:300]
        with suppress(Exception):  # another process was first
            client.key_value_set("jaxdiff/failed", mine)
        with suppress(Exception):  # the coordinator is gone: said below
            found.append(client.blocking_key_value_get("jaxdiff/failed", 1000))

    asking = threading.Thread(target=ask, daemon=True)
    with suppress(Exception):
        asking.start()
        asking.join(3)  # seconds; a dead coordinator does not reply
    return found[0] if found else "process 0, which coordinates the others, does not reply: see its output"


@contextmanager
def end_in_time() -> Iterator[None]:
    """End a process that fails within `GRACE` seconds.

    An orderly exit waits for all threads, and one that writes a checkpoint may wait for ever.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
        number = status if isinstance(status, int) else int(status is not None)

        def end() -> None:
            time.sleep(GRACE)
            names = [thread.name for thread in threading.enumerate() if not thread.daemon]
            print(f"jaxdiff: ended with status {number} while there were threads: {', '.join(names)}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(number)

        threading.Thread(target=end, name="end in time", daemon=True).start()
        raise


def _launched(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What a launcher's variables tell; JAX has a way to ask each of them for the rest."""
    if _number(environ, "SLURM_NTASKS") > 1 and "SLURM_STEP_NODELIST" in environ:
        # JAX gives each process the GPU of its number on the node: right for a process a GPU, not for one a node.
        alone = environ["SLURM_NTASKS"] == environ.get("SLURM_STEP_NUM_NODES")
        return {"cluster_detection_method": "slurm"} | ({"local_device_ids": []} if alone else {})
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        return {"cluster_detection_method": "ompi"}
    if "TPU_WORKER_HOSTNAMES" in environ or "TPU_PROCESS_ADDRESSES" in environ:
        hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
        many = "," in hosts or _number(environ, "MEGASCALE_NUM_SLICES") > 1
        return {"cluster_detection_method": "gketpu"} if many else None
    if "JOB_COMPLETION_INDEX" in environ:
        return _job(environ)
    return {"cluster_detection_method": "gcetpu"} if _tpu_vm() else None


def _by_hand(environ: Mapping[str, str]) -> dict[str, Any] | None:
    given = [environ.get(name) for name in (ADDRESS, COUNT, INDEX)]
    if not any(given) or (given[1] == "1" and given[2] in (None, "0")):
        return None
    missing = [name for name in (ADDRESS, COUNT, INDEX) if not environ.get(name)]
    if missing:
        raise ValueError(f"a run in many processes needs {ADDRESS}, {COUNT} and {INDEX}; not set: {', '.join(missing)}")
    count, index = environ[COUNT], environ[INDEX]
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ValueError(f"{INDEX} must be a number from 0 to {COUNT} - 1, got {index!r} and {count!r}")
    host, _, port = environ[ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{ADDRESS} must be HOST:PORT of process 0, got {environ[ADDRESS]!r}")
    found = {"coordinator_address": environ[ADDRESS], "num_processes": int(count), "process_id": int(index)}
    return found | {"cluster_detection_method": "deactivate"}


def _job(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """An indexed Job of Kubernetes: JAX asks the cluster's API for the other pods."""
    if find_spec("kubernetes") is not None:
        return {"cluster_detection_method": "k8s"}
    if environ["JOB_COMPLETION_INDEX"] == "0":
        return None  # a Job of one pod, or the others' errors end this one
    raise ValueError(
        f"this is pod {environ['JOB_COMPLETION_INDEX']} of a Job: set {ADDRESS}, {COUNT} and {INDEX}, or install "
        f"jax[k8s] to have them found; {COUNT}=1 is a separate run"
    )


def _tpu_vm() -> bool:
    """Whether Google's metadata server knows of other TPU hosts: asked only on a machine with a TPU."""
    if find_spec("libtpu") is None or os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    import jax  # noqa: F401  # sets the variable where there is no TPU

    return "TPU_SKIP_MDS_QUERY" not in os.environ


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0
