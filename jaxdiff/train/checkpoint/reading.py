"""Reading of one checkpoint, with verification of every byte."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxdiff.faults import Damaged
from jaxdiff.messages import listed
from jaxdiff.train.checkpoint import manifest, steps, together
from jaxdiff.train.checkpoint.arrays import Arrays
from jaxdiff.train.checkpoint.saving import STATE

Described = dict[str, jax.ShapeDtypeStruct]
# (the step's folder, its arrays) -> the arrays to read, with shardings
Choose = Callable[[Path, Described], Described]


def read(arrays: Arrays, place: Path, choose: Choose) -> dict[str, jax.Array]:
    """Read some of a step's arrays; each process verifies its share of the files, and all raise the same errors.

    Args:
        arrays: the reader.
        place: folder of the step.
        choose: returns the arrays to read.

    Returns:
        name -> array.

    Raises:
        Damaged: the step differs from what was written, or was deleted.
        Exception: an error of `choose` or the devices.
    """
    values: dict[str, Any] = {}
    error: Exception | None = None

    def part() -> list[str]:
        nonlocal values, error
        before = steps.identity(place)
        expected = manifest.read(place)
        names = {*expected.files, *manifest.files_of(place)}
        early = manifest.small(expected.files) | (names - expected.files.keys())  # the index is verified before its use
        problems = manifest.problems(place, expected.files, early)
        if problems:
            return problems
        late = sorted(names - early)[jax.process_index() :: jax.process_count()]
        with ThreadPoolExecutor(1) as pool:
            verified = pool.submit(manifest.problems, place, expected.files, late)
            try:
                values = jax.block_until_ready(arrays.read(place / STATE, choose(place, expected.arrays)))
            except Exception as raised:
                error = raised
            problems = verified.result()
        if steps.identity(place) != before:  # renamed meanwhile: the arrays may be incomplete
            problems.append("was deleted")
        return problems

    problems = [problem for messages in together.all_do(place.parent.name, part) for problem in messages]
    if problems:
        raise Damaged(listed(problems, max_names=3))
    together.all_do(place.parent.name, lambda: _raise(error))
    return values


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
