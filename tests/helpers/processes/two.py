"""One of some processes that save together: two.py PORT COUNT RANK FOLDER WHAT."""

import json
import os
import resource
import signal
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import train

PORT, COUNT, RANK, FOLDER, WHAT = sys.argv[1:]
if COUNT != "1":
    jax.distributed.initialize(f"localhost:{PORT}", int(COUNT), int(RANK), heartbeat_timeout_seconds=5)
MESH = Mesh(np.array(jax.devices()), ("x",))
PLACES = {"w": PartitionSpec("x"), "b": PartitionSpec()}


def state(step):
    values = {"w": np.random.default_rng(step).standard_normal((64, 64), np.float32), "b": np.arange(8.0) * step}

    def lay(x, where):
        return jax.make_array_from_callback(x.shape, NamedSharding(MESH, where), lambda index: x[index])

    params = {name: lay(x.astype(np.float32), PLACES[name]) for name, x in values.items()}
    return train.TrainState(lay(np.int32(step), PartitionSpec()), params, {}, {}, lay(np.int32(0), PartitionSpec()))


def same(a, b):
    """Whether this process's parts are equal."""
    equal = lambda x, y: all(  # noqa: E731
        np.array_equal(i.data, j.data) for i, j in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )
    return all(jax.tree.leaves(jax.tree.map(equal, a, b)))


def failure(checkpointer):
    for _ in range(300):
        found = checkpointer.failure()
        if found is not None:
            return [type(found).__name__, str(found)]
        time.sleep(0.01)
    return None


def full():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with train.Checkpointer(FOLDER, keep=5) as checkpointer:
        checkpointer.save(state(1))
        checkpointer.wait()
        first = checkpointer.failure()
        if RANK == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        checkpointer.save(state(2))
        failed = failure(checkpointer)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        after = checkpointer.steps()
        checkpointer.save(state(3))
        last = checkpointer.steps()
        good = same(checkpointer.restore(state(0)), state(3))
        if RANK == "0":
            part = checkpointer.folder / "3" / "state" / "array_metadatas" / "process_1"
            part.write_bytes(part.read_bytes()[:-1])
        found = checkpointer.restore(state(0))
        fallback = int(found.step) if same(found, state(1)) else None
    return {"first": first, "failed": failed, "after": after, "last": last, "good": good, "fallback": fallback}


def kill():
    with train.Checkpointer(FOLDER) as checkpointer:
        checkpointer.save(state(1))
        checkpointer.wait()
        if RANK == "1":  # when its part is written, and is not hashed
            os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        checkpointer.save(state(2))
        checkpointer.wait()


def after():
    with train.Checkpointer(FOLDER) as checkpointer:
        latest = checkpointer.latest()
        good = same(checkpointer.restore(state(0)), state(1))
        checkpointer.save(state(2))
    return {"latest": latest, "good": good}


print(json.dumps({"full": full, "kill": kill, "after": after}[WHAT]()))
sys.stdout.flush()
