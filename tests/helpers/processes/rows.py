"""One of two processes with four devices each, under SLURM: every mesh's global batch is that of one process."""

import itertools

import jax
import numpy as np

from jaxdiff import data, train
from jaxdiff.distributed import join
from jaxdiff.sharding import parse_mesh

join()
source = data.ArraySource(np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1))


def stream(rows):
    return itertools.islice(data.batches(source, 16, seed=3, start=2, rows=rows), 3)


first, second = (range(8), range(8, 16))
devices = jax.devices()
assert (len(devices), len(jax.local_devices())) == (8, 4)
for sizes, order, held in [
    ("data=4,fsdp=2", devices, (first, second)),
    # The hosts take turns along the batch, as on a slice whose best ring is not in their order.
    (
        "data=8",
        devices[::4] + devices[1::4] + devices[2::4] + devices[3::4],
        ((0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)),
    ),
    ("data=8", devices[::-1], (second, first)),
    # Parts of a layer on both hosts: both read all examples.
    ("data=1,fsdp=4,tensor=2", devices[::4] + devices[1::4] + devices[2::4] + devices[3::4], (range(16), range(16))),
    ("data=1,tensor=8", devices, (range(16), range(16))),
]:
    mesh = parse_mesh(sizes, devices=order)
    ordered = jax.sharding.Mesh(np.array(order).reshape(mesh.devices.shape), mesh.axis_names)
    rows = train.process_indices(ordered, 16)
    assert rows.tolist() == list(held[jax.process_index()]), (sizes, rows)
    for whole, mine in zip(stream(range(16)), stream(rows), strict=True):
        batch = train.shard_batch(mine, ordered)
        assert batch["x"].shape == whole["x"].shape
        for shard in batch["x"].addressable_shards:
            np.testing.assert_array_equal(shard.data, whole["x"][shard.index])
print(f"process {jax.process_index()} of {jax.process_count()}: all right")
