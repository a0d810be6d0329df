"""TPU slices that this machine lacks, described to libtpu's compiler."""

from __future__ import annotations

import os
from typing import Any

from jax.experimental import topologies


def describe(name: str) -> list[Any]:
    """Return described devices.

    Args:
        name: a chip and the slice's size in chips, e.g. "v5p:8x8x16".
    """
    # Without these, libtpu queries Google Cloud's metadata server, slowly, or warns. Other processes may compile at the
    # same time, since none holds a TPU.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():  # fmt: skip
        os.environ.setdefault(key, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
