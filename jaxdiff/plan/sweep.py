"""Plans of one experiment for several meshes and knobs, ordered from best to worst."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdiff.plan.report import Estimate, aligned, mesh_text

REMAT = ("none", "dots", "full")


class Candidate(NamedTuple):
    """A candidate of a sweep: a mesh in the format of `parse_mesh`, and the knobs of the experiment."""

    mesh: str
    knobs: dict[str, Any]


class Failure(NamedTuple):
    """A candidate that could not be planned, and the error."""

    candidate: Candidate
    why: str


def meshes(devices: int) -> list[str]:
    """Return meshes to try: fsdp over 1, 8, 64 or all devices, tensor over 1 or 4.

    Args:
        devices: number of devices of the slice.
    """
    fsdp = [size for size in (1, 8, 64) if size < devices and devices % size == 0] + [devices]
    tensor = [size for size in (1, 4) if devices % size == 0]
    sizes = [(f, t) for f, t in itertools.product(fsdp, tensor) if devices % (f * t) == 0]
    return [f"data={devices // (f * t)},fsdp={f}" + (f",tensor={t}" if t > 1 else "") for f, t in sizes]


def candidates(mesh: str | None, devices: int, knobs: dict[str, Any], free: Sequence[str]) -> list[Candidate]:
    """Return candidates for all settings that the user did not fix.

    Args:
        mesh: the user's mesh; None: try several.
        devices: number of devices of the slice.
        knobs: knobs of the experiment.
        free: which of "batch" and "remat" may vary.
    """
    batch = knobs.get("batch")
    values: dict[str, Sequence[Any]] = {}
    if "batch" in free and isinstance(batch, int):
        values["batch"] = (batch, 2 * batch, 4 * batch)
    if "remat" in free and "remat" in knobs:
        values["remat"] = REMAT
    return [
        Candidate(text, knobs | dict(zip(values, chosen, strict=True)))
        for text in ([mesh] if mesh else meshes(devices))
        for chosen in itertools.product(*values.values())
    ]


def sweep(tried: Sequence[Candidate], plan: Callable[[Candidate], Estimate]) -> tuple[list[Estimate], list[Failure]]:
    """Plan all candidates; a failure does not stop the others.

    Args:
        tried: candidates, from `candidates`.
        plan: candidate -> estimate.

    Returns:
        (plans by increasing time per example, then plans that do not fit, by increasing memory; failures).
    """
    plans, failed = [], []
    from tqdm import tqdm

    for candidate in (bar := tqdm(tried, desc="compiling", unit="plan")):
        bar.set_postfix_str(candidate.mesh)
        try:
            plans.append(plan(candidate))
        except Exception as error:  # of the compiler, of several types
            failed.append(Failure(candidate, str(error).strip().partition("\n")[0][:200] or type(error).__name__))
    return sorted(plans, key=_rank), failed


def _rank(plan: Estimate) -> tuple[Any, ...]:
    if not plan.fits:
        return (1, plan.memory.total)
    return (0, plan.roofline.seconds / plan.batch if plan.roofline else plan.memory.total / plan.batch)


def table(plans: Sequence[Estimate], failed: Sequence[Failure]) -> str:
    """Format a sweep as text, a line for each plan."""
    return "\n".join(itertools.chain(aligned([_HEAD, *map(_row, plans)]), _failures(failed)))


_HEAD = ("mesh", "batch", "remat", "GiB/device", "", "ms", "bound", "examples/s", "utilization")


def _row(plan: Estimate) -> tuple[str, ...]:
    roof = plan.roofline
    shown = ("",) * 4
    if plan.fits and roof is not None:
        shown = (f"{1e3 * roof.seconds:.4g}", roof.bound, f"{plan.batch / roof.seconds:.4g}", f"{roof.utilization:.1%}")
    fits = "fits" if plan.fits else "does not fit"
    return (mesh_text(plan.mesh), str(plan.batch), plan.remat, f"{plan.memory.total / 2**30:.2f}", fits, *shown)


def _failures(failed: Sequence[Failure]) -> Iterator[str]:
    for candidate, why in failed:
        knobs = "".join(f", {name} {candidate.knobs[name]}" for name in ("batch", "remat") if name in candidate.knobs)
        yield f"not planned: {candidate.mesh}{knobs}: {why}"
