"""Estimates of a compiled program: whether it fits, what bounds its time, and its utilization of the chips."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from jax.sharding import Mesh

from jaxdiff.plan import flops, links, traffic
from jaxdiff.plan.chips import Chip
from jaxdiff.plan.collectives import Collective, collectives
from jaxdiff.plan.compiling import Memory, Program
from jaxdiff.plan.graphs import Graphs
from jaxdiff.plan.kernels import PARTS, Kernels, kernels
from jaxdiff.plan.topologies import Topology

GUESS = (
    "Algorithms of products and convolutions are chosen by timing on the card: these are the compiler's guess.\n"
    "JAX takes 75 % of a card's memory, or the share that XLA_CLIENT_MEM_FRACTION says."
)
NOTE = "estimates of a compiler and of published peak figures, not measurements"


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of the time of one run of the program, one for each resource of the chip.

    Attributes:
        compute, memory, interconnect: seconds by each resource alone.
        seconds: the longest of them, assuming that the others overlap with it.
        bound: name of the longest.
        utilization: largest possible share of the chips' peak for the model's own operations.
    """

    compute: float
    memory: float
    interconnect: float
    seconds: float
    bound: str
    utilization: float


@dataclass(frozen=True)
class Estimate:
    """One plan; numbers are of one device and one run of the program.

    Attributes:
        title: experiment and program.
        topology: the slice's name.
        mesh: sizes by axis.
        batch: examples of all devices.
        remat: the experiment's policy, "" if it has none.
        memory: memory of the program.
        capacity: bytes of a device; None: a simulated one.
        fits: whether the program fits into one device.
        flops: operations of matrix products and convolutions, as compiled; None: the program does not fit.
        model_flops: operations of the model alone.
        bytes: bytes read from and written to the device's large memory.
        collectives: collectives of the program.
        kernels: kernels that a GPU launches; empty for other chips.
        graphs: CUDA graphs of them; None for other chips.
        roofline: lower bounds of the time; None: the chip has no published figures, or the compiler
            has given up, as a TPU's does where a program does not fit.
        compile_seconds: on this machine.
    """

    title: str
    topology: str
    mesh: dict[str, int]
    batch: int
    remat: str
    memory: Memory
    capacity: float | None
    fits: bool
    flops: float | None
    model_flops: float
    bytes: int | None
    collectives: Sequence[Collective]
    kernels: Sequence[Kernels]
    graphs: Graphs | None
    roofline: Roofline | None
    compile_seconds: float


def estimate(program: Program, slice: Topology, mesh: Mesh, *, title: str, batch: int, remat: str = "") -> Estimate:
    """Estimate the memory and speed of a compiled program.

    Args:
        program: from `compiling`.
        slice: devices that would run the program.
        mesh: mesh of the slice's devices.
        title: experiment and program.
        batch: examples of all devices.
        remat: the experiment's policy.
    """
    chip, module = slice.chip, program.module
    capacity = None if chip is None else chip.hbm / chip.devices * (1 if chip.torus else _share_of_memory())
    fits = module is not None and (capacity is None or program.memory.total <= capacity)
    done = moved = roof = None
    sent: list[Collective] = []
    launched: list[Kernels] = []
    if module is not None:
        # The text hides operations of the compiler's kernels, e.g. of attention; the traced count includes them.
        done = max(flops.count_flops(module), program.traced_flops / mesh.size)
        moved = traffic.count_bytes(module)
        sent = collectives(module, mesh)
        if chip is not None and not chip.torus:
            launched = kernels(module)
        if chip is not None:
            sent = [replace(entry, times=links.times(chip, mesh, entry)) for entry in sent]
            roof = roofline(chip, mesh, flops=done, bytes=moved, sent=sent, model_flops=program.model_flops / mesh.size)
    return Estimate(
        title, slice.name, dict(mesh.shape), batch, remat, program.memory, capacity, fits, done,
        program.model_flops / mesh.size, moved, sent, launched, program.graphs, roof, program.seconds,
    )  # fmt: skip


def roofline(
    chip: Chip, mesh: Mesh, *, flops: float, bytes: float, sent: Sequence[Collective], model_flops: float
) -> Roofline:
    """Bound a program's time by a chip's peak figures (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Args:
        chip: figures of the chip.
        mesh: mesh of the program, for the links of each collective.
        flops: operations of one device.
        bytes: bytes that one device reads and writes.
        sent: collectives of the program.
        model_flops: operations of the model alone, of one device.
    """
    share = 1 / chip.devices
    times = {
        "compute": flops / (chip.flops * share),
        "memory": bytes / (chip.bandwidth * share),
        "interconnect": sum(links.seconds(chip, mesh, entry) for entry in sent),
    }
    bound = max(times, key=lambda name: times[name])
    seconds = times[bound]
    return Roofline(**times, seconds=seconds, bound=bound, utilization=model_flops / (seconds * chip.flops * share))


def as_json(estimates: Estimate | Sequence[Estimate]) -> str:
    """Return one plan, or those of a sweep, as JSON."""
    if isinstance(estimates, Estimate):
        return json.dumps({"note": NOTE} | asdict(estimates), indent=2)
    return json.dumps({"note": NOTE, "plans": [asdict(plan) for plan in estimates]}, indent=2)


def table(plan: Estimate) -> str:
    """Format one plan as text."""
    memory, roof = plan.memory, plan.roofline
    rows = [
        ("arguments", _gib(memory.arguments)),
        ("outputs in new memory", None if memory.outputs is None else _gib(memory.outputs - (memory.shared or 0))),
        ("temporaries", None if memory.temporaries is None else _gib(memory.temporaries)),
        ("program", None if memory.code is None else _gib(memory.code)),
        ("total", f"{_gib(memory.total)}{_verdict(plan)}"),
        ("model FLOPs", f"{plan.model_flops / 1e12:.4g} TFLOP"),
        ("FLOPs", None if plan.flops is None else f"{plan.flops / 1e12:.4g} TFLOP"),
        ("bytes moved", None if plan.bytes is None else f"{plan.bytes / 1e9:.4g} GB"),
    ]
    if roof is not None:
        rate = plan.batch / roof.seconds
        rows += [
            ("time of compute", _ms(roof.compute)),
            ("time of memory", _ms(roof.memory)),
            ("time of interconnect", _ms(roof.interconnect)),
            ("bound", f"{roof.bound}: at least {_ms(roof.seconds)}, {rate:.4g} examples/s at most"),
            ("model-FLOPs utilization", f"{roof.utilization:.1%} at most"),
        ]
    rows.append(("compiled in", f"{plan.compile_seconds:.1f} s"))
    head = f"{plan.title} on {plan.topology}, mesh {mesh_text(plan.mesh)}, batch {plan.batch}"
    parts = [head + (f", remat {plan.remat}" if plan.remat else ""), f"({NOTE}; of one device and one run)", ""]
    parts += aligned([(name, value) for name, value in rows if value is not None])
    if plan.collectives:
        shown = [
            (
                c.kind, " x ".join(c.axes), f"{c.count}", f"{c.bytes / 1e6:.4g}", f"{c.sent / 1e6:.4g}",
                *(f"{1e3 * seconds:.4g}" for seconds in c.times.values()),
            )
            for c in plan.collectives
        ]  # fmt: skip
        where = [f"ms {link}" for link in plan.collectives[0].times]
        parts += ["", *aligned([("collective", "axes", "count", "MB", "MB sent", *where), *shown])]
    if plan.kernels:
        parts += ["", *_kernels(plan.kernels), ""]
        if plan.graphs is not None:
            parts.append(_graphs(plan.graphs))
        parts.append(GUESS)
    return "\n".join(parts)


def mesh_text(mesh: dict[str, int]) -> str:
    """Return the command line's text of a mesh, without axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "data=1"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the columns of a table, aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _kernels(kernels: Sequence[Kernels]) -> list[str]:
    """A line for each kind of kernel, with the number of launches in each part of the program."""
    parts = [part for part in PARTS if any(each.part == part for each in kernels)]
    kinds = dict.fromkeys(each.kind for each in kernels)
    shown = []
    groups = [(kind, [each for each in kernels if each.kind == kind]) for kind in kinds]
    for name, chosen in [*groups, ("all", kernels)]:
        counts = [sum(each.count for each in chosen if each.part == part) for part in parts]
        moved = [sum(each.read for each in chosen), sum(each.written for each in chosen)]
        shown.append((name, *map(str, counts), str(sum(counts)), *(f"{size / 1e6:.4g}" for size in moved)))
    return aligned([("kernel", *parts, "launches", "MB read", "MB written"), *shown])


def _graphs(graphs: Graphs) -> str:
    apart = ", ".join(f"{count} {kind}" for kind, count in graphs.apart.items()) or "nothing"
    return (
        f"The host launches {graphs.count} CUDA graphs with {graphs.kernels} kernels, and apart from them {apart}, "
        "where a loop's body counts once."
    )


def _share_of_memory() -> float:
    """The share of a GPU's memory that JAX takes here: its default, or what the user has chosen."""
    chosen = (os.environ.get(f"XLA_{name}MEM_FRACTION") for name in ("CLIENT_", "PYTHON_CLIENT_"))
    return float(next(filter(None, chosen), 0.75))


def _verdict(plan: Estimate) -> str:
    if plan.capacity is None:
        return ""
    spare = plan.capacity - plan.memory.total
    fits = f"fits, {_gib(spare)} to spare" if plan.fits else f"does not fit, {_gib(max(-spare, 0))} too much"
    return f" of {_gib(plan.capacity)}: {fits}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB" if size >= 2**24 else f"{size / 2**20:.3f} MiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"
