"""Collectives of a compiled program: their kinds, numbers, sizes and mesh axes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jax.sharding import Mesh

from jaxdiff.plan.hlo import Module, Run, runs

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_GROUPS = re.compile(
    r"replica_groups=(mesh\[.*?\][^{]*\{[^}]*\}|\{\{[\d,{} ]*\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes, in one run of the program.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes of the devices that take part.
        count: number of collectives; those of a loop count once for each iteration.
        bytes: size of their full arrays, after gathering or before scattering.
        sent: bytes that one device sends with a bandwidth-optimal algorithm.
        times: least seconds by kind of link, see `links.times`; empty: of simulated devices.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    sent: float
    times: Mapping[str, float] = field(default_factory=dict, hash=False)


def collectives(module: Module, mesh: Mesh) -> list[Collective]:
    """Find a compiled program's collectives.

    Args:
        module: the program.
        mesh: mesh of the program; groups list positions in `mesh.devices`, not device ids.

    Returns:
        one entry for each kind and set of axes, by decreasing bytes sent.
    """
    totals: dict[tuple[str, tuple[str, ...]], np.ndarray] = defaultdict(lambda: np.zeros(3))
    sending = [run for run in runs(module) if run.instruction.opcode.removesuffix("-start") in KINDS]
    started = {_key(run) for run in sending if _starts(run)}
    for run in sending:
        if run.fusion and _key(run) in started and not _starts(run):
            continue
        opcode = run.instruction.opcode.removesuffix("-start")
        groups = groups_of(run.instruction.attributes, mesh.size)
        size = len(groups[0])
        if opcode == "collective-permute":
            groups = [pair for pair in groups if pair[0] != pair[1]]
        if not groups or size == 1:
            continue
        # TPUs fuse an all-reduce with the slice that each device keeps: the parts are never gathered.
        kind = "reduce-scatter" if opcode == "all-reduce" and "all-reduce-scatter" in run.fusion else opcode
        bytes = _bytes(run, kind, size)
        key = kind, axes_of(groups, mesh)
        totals[key] += run.times * np.array([1, bytes, factor(kind, size) * bytes])
    entries = [Collective(*key, int(count), int(bytes), float(sent)) for key, (count, bytes, sent) in totals.items()]
    return sorted(entries, key=lambda entry: -entry.sent)


def _key(run: Run) -> tuple[str, str]:
    channel = re.search(r"channel_id=\d+", run.instruction.attributes)
    return run.instruction.opcode, channel[0] if channel else ""


def _starts(run: Run) -> bool:
    """Whether a TPU starts a collective here; overlapping operations and its end repeat its text."""
    return any(
        "AsyncCollectiveStart" in user.attributes and run.instruction.name in user.operands
        for user in run.computation.instructions.values()
    )


def factor(kind: str, size: int) -> float:
    """Return the bytes that each of `size` devices must send, as a multiple of the full array's bytes.

    An all-reduce scatters and then gathers, hence twice (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002,
    theorem 1).
    """
    if kind == "all-reduce":
        return 2 * (size - 1) / size
    if kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return (size - 1) / size
    return 1.0


def _bytes(run: Run, kind: str, size: int) -> int:
    """Bytes of the full array: an all-gather's operand is one part of it, other operands are complete."""
    find = run.computation.instructions
    operands = sum(array.bytes for name in run.instruction.operands for array in find[name].results)
    return operands * size if kind == "all-gather" else operands


def groups_of(attributes: str, devices: int) -> list[list[int]]:
    """Parse the groups of devices: `replica_groups` in its four forms, or the pairs of a permute.

    Args:
        attributes: text after an instruction's operands.
        devices: number of devices; an empty list means all of them.

    Raises:
        ValueError: the text has no groups, or they cannot be parsed.
    """
    pairs = _PAIRS.search(attributes)
    match = _GROUPS.search(attributes)
    text = "{" + pairs[1] + "}" if pairs else match[1] if match else ""
    if text == "{}":
        return [list(range(devices))]
    if text.startswith("{{"):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", text)]
    if text.startswith("["):  # [groups, size]<=[shape]T(permutation)
        shape, source, order = re.findall(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)[0]
        return _counted(source, order).reshape(_numbers(shape)).tolist()
    if text.startswith("mesh["):
        return _of_named_axes(text)
    raise ValueError(f"cannot read the groups of devices in {attributes[:200]!r}")


def _of_named_axes(text: str) -> list[list[int]]:
    """Parse `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; 'b':(2)3 is a part of 'b', of size 3, after 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text)}
    ids = re.search(r"device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\)", text)
    order = np.arange(math.prod(sizes.values()))
    if ids:
        order = _counted(ids[1], ids[2]) if ids[1] else np.array(_numbers(ids[3]))
    cut = {name: [size] for name, size in sizes.items()}
    chosen = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", text[text.rindex("{") :]):
        if size:
            cut[name] = [int(before), int(size), sizes[name] // (int(before) * int(size))]
        chosen.append((name, 1 if size else 0))
    parts = [(name, i) for name, pieces in cut.items() for i in range(len(pieces))]
    order = order.reshape([size for pieces in cut.values() for size in pieces])
    last = [parts.index(part) for part in chosen]
    rest = [i for i in range(len(parts)) if i not in last]
    members = math.prod(order.shape[i] for i in last)
    return order.transpose(rest + last).reshape(-1, members).tolist()


def _counted(shape: str, order: str) -> np.ndarray:
    """Return 0, 1, 2, ... in a shape, with permuted axes, flattened."""
    sizes = _numbers(shape)
    counted = np.arange(math.prod(sizes)).reshape(sizes)
    return counted.transpose(_numbers(order) if order else None).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def axes_of(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """Return the mesh axes along which the members of a group differ."""
    places = np.array([np.unravel_index(group, mesh.devices.shape) for group in groups])  # [groups, axes, members]
    differ = (places != places[..., :1]).any((0, 2))
    return tuple(axis for axis, yes in zip(mesh.axis_names, differ, strict=True) if yes)
