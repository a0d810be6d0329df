"""Time of a collective on the links between chips: a torus, or a switch in each host and a network between hosts."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh

from jaxdiff.plan.chips import Chip
from jaxdiff.plan.collectives import Collective, factor


def seconds(chip: Chip, mesh: Mesh, collective: Collective) -> float:
    """Return the least time that a collective takes, that of its slowest links; arguments as for `times`."""
    return max(times(chip, mesh, collective).values())


def times(chip: Chip, mesh: Mesh, collective: Collective) -> dict[str, float]:
    """Return the least seconds that a collective takes on each kind of link, which work side by side.

    Args:
        chip: chip of the slice.
        mesh: mesh of the slice's devices.
        collective: all collectives of one kind over the same axes.

    Returns:
        {"torus": seconds}, or of a switch {"in a host": seconds, "between hosts": seconds}.
    """
    out = chip.interconnect / 2 / chip.devices  # the published figure adds both directions
    if chip.torus:
        return {"torus": collective.sent / (out * share_of_torus(chip, mesh, collective.axes))}
    hosts, each = hosts_of(mesh, collective.axes)
    between, inside = 0.0, float(collective.bytes)
    if hosts > 1:
        # All chips of a host send a part of what leaves the host, unless each sends something of its own.
        parts = 1 if collective.kind in ("all-to-all", "collective-permute") else each
        between = factor(collective.kind, hosts) * collective.bytes / parts / (chip.network / 2)
        inside = inside / hosts if collective.kind == "all-to-all" else inside
    within = factor(collective.kind, each) * inside / out if each > 1 else 0.0
    return {"in a host": within, "between hosts": between}


def share_of_torus(chip: Chip, mesh: Mesh, axes: tuple[str, ...]) -> float:
    """Return the share of a chip's links that a collective can use: the links along the torus dimensions that it spans.

    Along a part of a dimension these are half as many, since a part closes no ring.

    Args:
        chip: chip of the slice.
        mesh: mesh of the slice's devices.
        axes: mesh axes of the collective.
    """
    sides, spans = (
        [len(set(places)) for places in zip(*(device.coords for device in devices), strict=True)]
        for devices in (mesh.devices.ravel(), _group(mesh, axes))
    )
    spanned = sum(1.0 if span == side else 0.5 for side, span in zip(sides, spans, strict=True) if span > 1)
    return (spanned or 1) / chip.torus  # links within a chip are at least as fast as links between chips


def hosts_of(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, int]:
    """Return the number of hosts that take part in a collective, and the number of chips of each.

    Args:
        mesh: mesh of the devices.
        axes: mesh axes of the collective.
    """
    group = _group(mesh, axes)
    hosts = len({device.process_index for device in group})
    return hosts, len(group) // hosts


def _group(mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    at = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    return mesh.devices[at].ravel()
