"""Bytes that a compiled program reads from and writes to a device's large memory."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxdiff.plan.hlo import Array, Computation, Instruction, Module, Run, opcodes_of, runs

# No data moves here, or it is counted elsewhere: in a loop's body, at the start of a copy.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "iota", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip
# Operations that read more numbers than they write.
_SUMS = {"reduce", "dot", "convolution", "reduce-window", "select-and-scatter", "scatter", "sort"}


class Traffic(NamedTuple):
    """Bytes that move between a device and its large memory."""

    read: int
    written: int


def count_bytes(module: Module) -> int:
    """Count the bytes of one device; those in a loop count once for each iteration.

    An instruction reads its operands and writes its results once; values inside a fusion stay in registers. For a slice
    and an update in place, only the slice and the update count. Arrays in other memories do not count, nor does the
    workspace of a library's call.
    """
    return sum(run.times * sum(of_run(module, run)) for run in runs(module) if not run.fusion)


def of_run(module: Module, run: Run) -> Traffic:
    """Count the bytes of one run of an instruction outside of fusions."""
    instruction, find = run.instruction, run.computation.instructions
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return Traffic(0, 0)
    read = [find[name].results for name in instruction.operands]
    inner = module.computations.get(instruction.called("calls") or "") if instruction.opcode == "fusion" else None
    if inner is not None:
        used = {place: _used(module, inner, name) for place, name in _parameters(inner).items()}
        scale = [used.get(place) for place in range(len(read))]
        inputs = sum(_near(operand, part) for operand, part in zip(read, scale, strict=True))
        if _SUMS.isdisjoint(opcodes_of(module, inner)):
            # Each number of the results takes one number of an operand, e.g. of two concatenated ones that are sliced.
            count = sum(math.prod(array.shape) for array in instruction.results)
            operands = [array for arrays in read for array in arrays if array.space == 0]
            inputs = min(inputs, sum(min(array.bytes, count * array.bits // 8) for array in operands))
        return Traffic(inputs, _written(module, inner, instruction))
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        size = _size(instruction.results)
        return Traffic(size + sum(map(_size, read[1:])), size)
    if instruction.opcode == "dynamic-update-slice":
        return Traffic(_size(read[1]), _size(read[1]))
    if instruction.opcode == "all-reduce-start":
        return Traffic(sum(map(_size, read)), _size(instruction.results))
    if instruction.opcode.endswith("-start"):  # the results hold the operands again
        inputs = sum(map(_size, read))
        return Traffic(inputs, max(0, _size(instruction.results) - inputs))
    results = instruction.results
    if instruction.opcode == "custom-call" and len(results) > 1 and results[-1].dtype in ("s8", "u8"):
        results = results[:-1]  # the last result of a call of cuDNN or cuBLAS is its workspace
    return Traffic(sum(map(_size, read)), _size(results))


def _size(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _near(operand: tuple[Array, ...], part: int | None) -> int:
    """Bytes read of an operand, of which `part` bytes are used; None: all."""
    return _size(operand) if part is None else min(part, _size(operand))


def _parameters(inner: Computation) -> dict[int, str]:
    return {int(x.value): x.name for x in inner.instructions.values() if x.opcode == "parameter"}


def _used(module: Module, inner: Computation, parameter: str) -> int | None:
    """Bytes of a fusion's operand that it reads; None: all of them."""
    names, total = [parameter], 0
    while names:
        name = names.pop()
        for user in inner.instructions.values():
            if name not in user.operands:
                continue
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += sum(array.bytes for array in user.results)
            elif user.opcode == "fusion":
                nested = module.computations[user.called("calls") or ""]
                places = _parameters(nested)
                for place in (place for place, operand in enumerate(user.operands) if operand == name):
                    part = _used(module, nested, places[place])
                    if part is None:
                        return None
                    total += part
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return None
        if name == inner.root.name:
            return None
    return total


def _written(module: Module, inner: Computation, fusion: Instruction) -> int:
    roots = [inner.instructions[n] for n in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
    if len(roots) != len(fusion.results):
        return _size(fusion.results)
    total = 0
    for root, result in zip(roots, fusion.results, strict=True):
        update = _update(module, inner, root)
        total += _size((result,)) if update is None or result.space != 0 else update
    return total


def _update(module: Module, inner: Computation, root: Instruction) -> int | None:
    """Bytes that a fusion updates in place; None: it writes the full array."""
    source = inner.resolve(root.name)
    if source.opcode == "fusion":
        nested = module.computations[source.called("calls") or ""]
        return None if nested.root.opcode == "tuple" else _update(module, nested, nested.root)
    if source.opcode != "dynamic-update-slice":
        return None
    return sum(array.bytes for array in inner.instructions[source.operands[1]].results)
