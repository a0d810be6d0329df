"""CUDA graphs of a program for GPUs, by XLA's list of what the host does in turn ("thunks")."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"( *)\d+: k(\w+)")
GRAPH, LOOP = "CommandBuffer", "While"


@dataclass(frozen=True)
class Graphs:
    """What the host launches; what stands in a loop counts once.

    Attributes:
        count: graphs.
        kernels: kernels and copies in them.
        apart: what is launched by itself, by XLA's name of the kind.
    """

    count: int
    kernels: int
    apart: Mapping[str, int]


def parse(text: str) -> Graphs:
    """Parse a dumped list of thunks, in which what stands in a graph, a loop or another thunk is indented."""
    around: list[tuple[int, str]] = []
    count = kernels = 0
    apart: Counter[str] = Counter()
    for indent, kind in _LINE.findall(text):
        while around and around[-1][0] >= len(indent):
            around.pop()
        parent = around[-1][1] if around else LOOP
        if kind == GRAPH:
            count += 1
        elif parent == GRAPH:
            kernels += 1
        elif parent == LOOP and kind != LOOP:
            apart[kind] += 1
        around.append((len(indent), kind))
    return Graphs(count, kernels, dict(apart))
