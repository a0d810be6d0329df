"""`jaxdiff eval RUN`: a run's samples measured against data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from jaxdiff.cli.places import try_file
from jaxdiff.cli.sample import with_prior
from jaxdiff.drawing import evaluate, parameters
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Batch, Num, Seed, Steps
from jaxdiff.pretrained import open_run
from jaxdiff.quantize import Weights
from jaxdiff.recipe import load_run
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    num: Num = 1000,
    guidance: float | None = None,
    guidance_fn: str | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: Steps | None = None,
    seed: Seed = 0,
    batch: Batch = 100,
    params: Literal["ema", "params"] = "ema",
    weights: Weights | None = None,
    prior: Path | None = None,
    mesh: str = "",
    trust: bool = False,
) -> None:
    """Measure a run's samples against real test data; for images a classifier is fitted to real ones first.

    Prints how many samples and how many real images the classifier recognizes, and the kernel distance, precision and
    recall of both; writes RUN/eval.json.

    Args:
        run: the run's folder.
        num: number of samples, their classes in turn.
        guidance: classifier-free guidance scale, 1 is off; by default the experiment's.
        guidance_fn: one of jaxdiff.guidance such as apg(eta=0.5), or FILE.py:NAME; by default the experiment's.
        solver: one of jaxdiff.solvers such as ddim(eta=1.0), or FILE.py:NAME; by default the experiment's.
        grid: one of jaxdiff.grids, or FILE.py:NAME; by default the experiment's.
        steps: number of steps; by default the experiment's.
        seed: of the samples.
        batch: samples at a time.
        params: averaged or last parameters.
        weights: kernels in 8 bits; by default as they are.
        prior: run that turns prompts into the embeddings of a decoder; by default the one that it was trained with.
        mesh: devices as data=4,fsdp=2; data takes those that are left.
        trust: execute the run's program even if others can write it.
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
