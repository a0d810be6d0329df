"""`jaxdiff plan EXPERIMENT --topology NAME`: memory and speed of a run on chips that this machine lacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdiff.cli.knobs import parse_knobs
from jaxdiff.cli.options import TRUST_PARTS
from jaxdiff.cli.places import try_file
from jaxdiff.experiment import Experiment
from jaxdiff.plan import Estimate, Topology, as_json, estimate, sampling, sweep, table, topology, train_step
from jaxdiff.plan.topologies import EXAMPLES
from jaxdiff.planning import planning
from jaxdiff.quantize import Weights
from jaxdiff.recipe import load
from jaxdiff.sharding import parse_mesh, use_mesh
from jaxdiff.storage import write_text
from jaxdiff.trust import trusting

OWN = {
    "topology": (str, inspect.Parameter.empty, f"the chips and their number: {EXAMPLES}."),
    "mesh": (str, "", "its devices as data=128,fsdp=8,tensor=2,sequence=2; data takes those that are left."),
    "sample": (bool, False, "plan the sampler in place of the train step; batch is then what it draws at a time."),
    "weights": (Weights | None, None, "of a sampler, kernels in 8 bits."),
    "sweep": (bool, False, "compile many, best first: each of mesh, batch and remat that the command does not give."),
    "json": (Path | None, None, "also write the plan to this file."),
    "trust": TRUST_PARTS,
}


def command(args: list[str]) -> None:
    """`jaxdiff plan EXPERIMENT --topology NAME [--knobs]`."""
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: jaxdiff plan EXPERIMENT --topology NAME [--mesh MESH] [--sample] [--sweep] [--json FILE] [knobs]\n"
            f"\nNAME is a slice such as {EXAMPLES}.\nAll options: jaxdiff plan EXPERIMENT --help"
        )
        return
    # Arrays, e.g. a table of betas, are computed on the CPU, whatever this machine has. The plan reports the time of
    # compilation, which JAX's own cache would hide; that of plans keeps it.
    jax.config.update("jax_platforms", "cpu")
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", None)  # the user wants nothing to be kept
    jax.config.update("jax_enable_compilation_cache", False)
    path, *rest = args
    build = load(path)
    knobs, options = parse_knobs(build, rest, OWN, prog=f"jaxdiff plan {path}")
    build = trusting(options["trust"])(build)
    if options["json"] is not None:
        try_file(options["json"], "--json")
    slice = topology(options["topology"])
    if options["weights"] and not options["sample"]:
        raise ValueError("--weights are a sampler's: they need --sample")
    of = {"name": Path(path).stem, "sample": options["sample"], "weights": options["weights"]}
    with planning():
        if options["sweep"]:
            free = [knob for knob in ("batch", "remat") if not _given(knob, rest)]
            plans: Estimate | list[Estimate] = _sweep(build, knobs, slice, options["mesh"], free, **of)
        else:
            plans = plan_one(build, knobs, slice, options["mesh"], **of)
            print(table(plans))
    if options["json"] is not None:
        write_text(options["json"], as_json(plans) + "\n")


def _sweep(
    build: Callable[..., Experiment], knobs: dict[str, Any], slice: Topology, mesh: str, free: list[str], **of: Any
) -> list[Estimate]:
    """Plan all candidates, and print them, the best first."""
    tried = sweep.candidates(mesh or None, len(slice.devices), knobs, free)

    def plan(candidate: sweep.Candidate) -> Estimate:
        return plan_one(build, candidate.knobs, slice, candidate.mesh, **of)

    plans, failed = sweep.sweep(tried, plan)
    print(sweep.table(plans, failed))
    if not plans:
        raise ValueError(f"none of the {len(tried)} candidates could be planned")
    return plans


def plan_one(
    build: Callable[..., Experiment], knobs: dict[str, Any], slice: Topology, mesh: str, *, name: str, sample: bool,
    weights: Weights | None = None,
) -> Estimate:  # fmt: skip
    """Compile an experiment's program for a slice, and estimate.

    Args:
        build: the experiment's function.
        knobs: its arguments.
        slice: from `topology`.
        mesh: as `parse_mesh` reads it.
        name: of the experiment.
        sample: the sampler in place of the train step.
        weights: of a sampler, "int8" or "float8": kernels in 8 bits.

    Raises:
        ValueError: the mesh does not fit the slice, or the batch or the parameters not the mesh.
    """
    arranged = parse_mesh(mesh, devices=slice.devices)
    with use_mesh(arranged):
        experiment = build(**knobs)
    program = sampling(experiment, arranged, weights) if sample else train_step(experiment, arranged)
    title = f"{name}, {'sampler' if sample else 'train step'}{f', {weights}' if weights else ''}"
    return estimate(
        program, slice, arranged, title=title, batch=experiment.training.batch, remat=str(knobs.get("remat", ""))
    )  # fmt: skip


def _given(knob: str, args: list[str]) -> bool:
    return any(arg == f"--{knob}" or arg.startswith(f"--{knob}=") for arg in args)
