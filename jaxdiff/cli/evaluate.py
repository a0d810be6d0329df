"""`jaxdiff eval RUN`: a run's samples measured against data."""

from __future__ import annotations

from pathlib import Path

import tyro

from jaxdiff.cli.options import (
    Devices,
    EightBits,
    GridName,
    Guidance,
    GuidanceFn,
    SampleSteps,
    SolverName,
    Trust,
    WhichParams,
)
from jaxdiff.cli.places import try_file
from jaxdiff.cli.sample import with_prior
from jaxdiff.drawing import evaluate, parameters
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Batch, Num, Seed
from jaxdiff.pretrained import open_run
from jaxdiff.recipe import load_run
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    num: Num = 1000,
    guidance: Guidance = None,
    guidance_fn: GuidanceFn = None,
    solver: SolverName = None,
    grid: GridName = None,
    steps: SampleSteps = None,
    seed: Seed = 0,
    batch: Batch = 100,
    params: WhichParams = "ema",
    weights: EightBits = None,
    prior: Path | None = None,
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Measure a run's samples against real test data; for images a classifier is fitted to real ones first.

    Prints how many samples and how many real images the classifier recognizes, and the kernel distance, precision and
    recall of both; writes RUN/eval.json.

    Args:
        run: the run's folder.
        num: number of samples, their classes in turn.
        seed: of the samples.
        batch: samples at a time.
        prior: run that turns prompts into the embeddings of a decoder; by default the one that it was trained with.
    """
    where, run = parse_mesh(mesh), open_run(run)
    try_file(run / "eval.json", "a run's")
    experiment = change_sampling(
        load_run(run, mesh=where, trust=trust, changes=with_prior(prior)),
        guidance=guidance, guidance_fn=guidance_fn, solver=solver, grid=grid, steps=steps,
    )  # fmt: skip
    trained = parameters(experiment, run, params, weights=weights, mesh=where)
    report = evaluate(experiment, trained, run, num=num, seed=seed, batch=batch, mesh=where)
    print(report.text)
    print(run / "eval.json")
