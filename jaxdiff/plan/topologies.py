"""TPU slices by name, and their chips' published figures; and simulated CPU devices, which have none."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

GIB, TERA, GIGA = 2**30, 1e12, 1e9


class Chip(NamedTuple):
    """Published figures of one chip.

    Attributes:
        hbm: bytes of its large memory.
        flops: bfloat16 operations a second.
        bandwidth: bytes a second of the large memory.
        interconnect: bytes a second to all neighbours, both directions added.
        torus: dimensions of the network between the chips.
        devices: JAX devices per chip; they share all of the above.
    """

    hbm: float
    flops: float
    bandwidth: float
    interconnect: float
    torus: int
    devices: int = 1


# Tables "key specifications" of Google Cloud's documentation: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x.
# Where two pages differ by rounding (v6e's memory: 1638 and 1640 GB/s), the smaller figure is used. "16 GB" and "32 GB"
# are GiB, as the compiler's own limit shows. A tpu7x chip is two devices (page tpu7x, "dual-chiplet").
CHIPS = {
    "v5e": Chip(16 * GIB, 197 * TERA, 819 * GIGA, 400 * GIGA, torus=2),
    "v5p": Chip(95 * GIB, 459 * TERA, 2765 * GIGA, 1200 * GIGA, torus=3),
    "v6e": Chip(32 * GIB, 918 * TERA, 1638 * GIGA, 800 * GIGA, torus=2),
    "tpu7x": Chip(192 * GIB, 2307 * TERA, 7380 * GIGA, 1200 * GIGA, torus=3, devices=2),
}
EXAMPLES = "v5e:2x4, v5e:16x16, v5p:8x8x16, v6e:16x16, tpu7x:4x4x4 or cpu:8"


class Topology(NamedTuple):
    """A slice: its name, its chips (None: simulated on a CPU), and JAX's description of its devices."""

    name: str
    chip: Chip | None
    devices: list[Any]


def topology(name: str) -> Topology:
    """Look up a slice, without a TPU or a network.

    Args:
        name: a chip and the slice's size in chips, e.g. "v5p:8x8x16", or "cpu:8" for 8 simulated devices.

    Raises:
        ValueError: the chip or the size is unknown, or libtpu is missing.
    """
    kind, _, size = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        return Topology(name, None, _simulated(int(size)))
    if kind not in CHIPS:
        raise ValueError(f"unknown topology {name!r}: known chips are {', '.join(CHIPS)} and cpu, as in {EXAMPLES}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (chip.torus - 1), size):
        shape = "x".join("NMK"[: chip.torus])
        raise ValueError(f"unknown topology {name!r}: a slice of {kind} is written {kind}:{shape}, as in {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("TPU programs are compiled by libtpu, which is missing: pip install 'jaxdiff[plan]'")
    # Without these, libtpu queries Google Cloud's metadata server, slowly, or warns. Other processes may compile at the
    # same time, since none holds a TPU.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():  # fmt: skip
        os.environ.setdefault(key, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # of libtpu, of several types
        raise ValueError(f"libtpu has no topology {name!r} ({_first_line(error)}); try {EXAMPLES}") from error
    return Topology(name, chip, list(described.devices))


def _simulated(count: int) -> list[Any]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is initialized already, and keeps its devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"cpu:{count} needs {count} simulated devices, and this process has {len(devices)}")
    return devices[:count]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def links(chip: Chip, mesh: Mesh, axes: tuple[str, ...]) -> float:
    """Return the share of a chip's links that a collective can use: the links along the torus dimensions that it spans.

    Along a part of a dimension these are half as many, since a part closes no ring.

    Args:
        chip: chip of the slice.
        mesh: mesh of the slice's devices.
        axes: mesh axes of the collective.
    """
    at = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    sides, spans = (
        [len(set(places)) for places in zip(*(device.coords for device in devices.ravel()), strict=True)]
        for devices in (mesh.devices, mesh.devices[at])
    )
    spanned = sum(1.0 if span == side else 0.5 for side, span in zip(sides, spans, strict=True) if span > 1)
    return (spanned or 1) / chip.torus  # links within a chip are at least as fast as links between chips
