"""Parser of a compiled program's text: its computations, its instructions, and how often each one runs.

The compiler's own statistics count the body of a loop once, which ignores scanned layers and microbatches. This parser
counts a loop's body once for each iteration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Other instructions that run computations, and the attributes that name these. All branches count, since the text does
# not determine which one runs.
_CALLS = {
    "call": "to_apply",
    "async-start": "calls",
    "custom-call": "called_computations",
    "conditional": "branch_computations|true_computation|false_computation",
}
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


class Array(NamedTuple):
    """Type, shape and memory of one array: space 0 is the device's large memory, others are on-chip or the host's."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bits(self) -> int:
        """Size of a number."""
        return 8 if self.dtype == "pred" else int((re.findall(r"\d+", self.dtype) or ["0"])[0])

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return -(-math.prod(self.shape) * self.bits // 8)


class Instruction(NamedTuple):
    """One line: `name = results opcode(operands), attributes`; a constant's operand is its value."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    value: str = ""

    def all_called(self, attributes: str) -> list[str]:
        """Return the names of the computations in an attribute, e.g. "body", or in any of "one|other"."""
        values = re.findall(rf"\b(?:{attributes})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name for value in values for name in re.findall(r"%?([\w.\-]+)", value)]

    def called(self, attribute: str) -> str | None:
        """Return the first of `all_called`, or None."""
        return next(iter(self.all_called(attribute)), None)


class Computation(NamedTuple):
    """A function: its instructions by name, in order, and the root, whose result it returns."""

    instructions: dict[str, Instruction]
    root: Instruction

    def resolve(self, name: str) -> Instruction:
        """Return an instruction, or its operand where it is a copy, a conversion or a change of shape."""
        instruction = self.instructions[name]
        while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert") and instruction.operands:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str


class Run(NamedTuple):
    """An instruction, its computation, and how often a run of the program executes it."""

    instruction: Instruction
    computation: Computation
    times: int
    fusion: str = ""  # the enclosing fusion, and the computation that the fusion calls


def parse(text: str) -> Module:
    """Parse the text of a compiled program.

    Args:
        text: an optimized HLO module, e.g. `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = ""
    instructions: dict[str, Instruction] = {}
    root = None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, instructions, root = header[2], {}, None
            entry = name if header[1] else entry
        elif line.startswith("}") and instructions:
            computations[name] = Computation(instructions, root or next(reversed(instructions.values())))
        elif name and (match := _LINE.match(line)):
            instruction = _instruction(match[2], match[3])
            instructions[instruction.name] = instruction
            root = instruction if match[1] else root
    if not entry:
        raise ValueError("the text is not a compiled HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    return Instruction(
        name, rest[:opening], arrays(kind), tuple(_NAME.findall(inside)), rest[closing:].lstrip(", "), value=inside
    )


def _closing(text: str, start: int) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"a parenthesis is left open in {text[:80]!r}")


def arrays(text: str) -> tuple[Array, ...]:
    """Parse the arrays of a type such as `(f32[2,3]{1,0}, bf16[4]{0:S(1)})`, tuples flattened."""
    parsed = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.removeprefix("<=")) for size in shape.split(",") if size)
        parsed.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(parsed)


def runs(module: Module) -> Iterator[Run]:
    """Yield all instructions that a run of the program executes, including those in loops and fusions."""
    yield from _walk(module, module.entry, 1)


def _walk(module: Module, name: str, times: int, fusion: str = "") -> Iterator[Run]:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        yield Run(instruction, computation, times, fusion)
        if instruction.opcode == "while":
            count = times * (trips(module, computation, instruction) or 1)
            yield from _walk(module, instruction.called("body") or "", count, fusion)
        elif instruction.opcode == "fusion":
            inner = instruction.called("calls") or ""
            yield from _walk(module, inner, times, f"{instruction.name} {inner}")
        elif instruction.opcode in _CALLS:
            for inner in instruction.all_called(_CALLS[instruction.opcode]):
                yield from _walk(module, inner, times, fusion)


def opcodes_of(module: Module, computation: Computation) -> Iterator[str]:
    """Yield the operations of a fusion, including those of fusions within it."""
    for instruction in computation.instructions.values():
        yield instruction.opcode
        if instruction.opcode == "fusion":
            yield from opcodes_of(module, module.computations[instruction.called("calls") or ""])


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return the number of iterations of a while loop, or None where the text does not determine it.

    Compilers for some devices annotate the loop with the number. For others it follows from the loop's counter: its
    start, its step, and the constant in the comparison.
    """
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition") or ""]
    test = condition.root
    if test.opcode == "fusion":
        inner = module.computations[test.called("calls") or ""]
        places = {x.name: int(x.value) for x in inner.instructions.values() if x.opcode == "parameter"}
        sides = [inner.resolve(name) for name in inner.root.operands]
        operands = [condition.resolve(test.operands[places[s.name]]) if s.name in places else s for s in sides]
        test = inner.root
    else:
        operands = [condition.resolve(name) for name in test.operands]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, bound = operands
    index = re.search(r"index=(\d+)", counter.attributes)
    if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or index is None:
        return None
    place = int(index[1])
    first = computation.resolve(_element(computation.resolve(loop.operands[0]), place))
    if first.opcode != "constant":
        return None
    step = _step(module.computations[loop.called("body") or ""], place)
    return None if step is None else max(0, -(-(int(bound.value) - int(first.value)) // step))


def _element(carry: Instruction, place: int) -> str:
    return carry.operands[place] if carry.opcode == "tuple" else carry.name


def _step(body: Computation, place: int) -> int | None:
    """Increment of the counter at a position of the loop's carry."""
    update = body.resolve(_element(body.root, place))
    if update.opcode != "add":
        return None
    constants = [operand for operand in map(body.resolve, update.operands) if operand.opcode == "constant"]
    return int(constants[0].value) if len(constants) == 1 else None
