"""Kernels that a GPU launches in one run of a compiled program: their kinds, numbers and bytes."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from jaxdiff.plan import traffic
from jaxdiff.plan.collectives import KINDS as COLLECTIVES
from jaxdiff.plan.hlo import Computation, Instruction, Module, Run, opcodes_of, runs

# The libraries' calls, by the beginning of their names.
_CALLS = {
    "__cudnn$conv": "cuDNN convolution",
    "__cudnn$fmha": "cuDNN attention",
    "__cudnn": "cuDNN",
    "__cublas": "cuBLAS product",
    "__triton": "Triton",
}
# Kinds of fusions, by the operations in them, the first that applies.
_FUSIONS = {"dot": "Triton product", "convolution": "Triton product", "reduce": "reduction", "transpose": "transpose"}

PARTS = ("forward", "backward", "rest")


@dataclass(frozen=True)
class Kernels:
    """All kernels of one kind in one run of the program; those of a loop count once for each iteration.

    Attributes:
        kind: "cuDNN convolution", "reduction", "transpose", "copy", "elementwise", ...
        part: one of `PARTS`; "rest" is all that is not differentiated: of a sampler, everything.
        count: number of launches.
        read: bytes read from the large memory.
        written: bytes written to it.
    """

    kind: str
    part: str
    count: int
    read: int
    written: int


def kernels(module: Module) -> list[Kernels]:
    """Find a GPU program's kernels.

    Args:
        module: the program.

    Returns:
        one entry for each kind and part, by decreasing bytes.
    """
    totals: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3, np.int64))
    for run in runs(module):
        kind = "" if run.fusion else kind_of(module, run)
        if kind:
            totals[kind, part_of(module, run.instruction)] += run.times * np.array([1, *traffic.of_run(module, run)])
    entries = [Kernels(*key, *map(int, total)) for key, total in totals.items()]
    return sorted(entries, key=lambda entry: -(entry.read + entry.written))


def kind_of(module: Module, run: Run) -> str:
    """Return the kind of kernel that an instruction outside of fusions launches, "" if it launches none."""
    instruction = run.instruction
    if instruction.opcode in traffic.FREE or instruction.opcode.endswith(("-done", "-update")):
        return ""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in COLLECTIVES:
        return "collective"
    if opcode == "fusion":
        return _of_fusion(module, module.computations[instruction.called("calls") or ""])
    if opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        name = target[1] if target else "custom-call"
        return next((kind for start, kind in _CALLS.items() if name.startswith(start)), name)
    return {"reduce": "reduction"}.get(opcode, opcode)


def part_of(module: Module, instruction: Instruction) -> str:
    """Return the part of a train step that an instruction belongs to, by the names of JAX's transformations."""
    inner = module.computations.get(instruction.called("calls") or "")
    names = _names(instruction) or ([name for x in inner.instructions.values() for name in _names(x)] if inner else [])
    if any("transpose(" in name for name in names):
        return "backward"
    return "forward" if any("jvp(" in name for name in names) else "rest"


def _names(instruction: Instruction) -> list[str]:
    return re.findall(r'op_name="([^"]*)"', instruction.attributes)


def _of_fusion(module: Module, inner: Computation) -> str:
    opcodes = set(opcodes_of(module, inner))
    return next((kind for opcode, kind in _FUSIONS.items() if opcode in opcodes), "elementwise")
