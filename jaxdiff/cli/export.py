"""`jaxdiff export RUN`: a run's sampler as one file, which runs where there is nothing but JAX."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from jaxdiff.cli.options import EightBits, GridName, GuidanceFn, SampleSteps, SolverName, Trust, WhichParams
from jaxdiff.cli.places import try_file
from jaxdiff.cli.prompt import is_pipeline
from jaxdiff.drawing import parameters
from jaxdiff.export import export_sampler, flat_weights, for_export, signature, write_program
from jaxdiff.hooks import change_sampling
from jaxdiff.pretrained import open_run
from jaxdiff.progress import busy
from jaxdiff.recipe import load_run
from jaxdiff.storage import replacing


def command(
    run: tyro.conf.Positional[Path],
    out: Path | None = None,
    solver: SolverName = None,
    grid: GridName = None,
    steps: SampleSteps = None,
    guidance: float | None = None,
    guidance_fn: GuidanceFn = None,
    params: WhichParams = "ema",
    weights: EightBits = None,
    embed_weights: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    platforms: str = "cpu,cuda,tpu",
    trust: Trust = False,
) -> None:
    """Write a run's sampler as one program for any batch size; six lines with nothing but JAX load and run it.

    Args:
        run: the run's folder.
        out: FILE.jaxdiff; by default RUN/sampler.jaxdiff.
        guidance: scale to build in, 1 is off; by default an argument of the program, where the network knows guidance.
        embed_weights: weights inside the file, or else an argument of the program and in a .npz file next to it.
        dtype: in which the network computes: float32, or bfloat16 as on an accelerator.
        platforms: where the program runs, of cpu, cuda, rocm and tpu.
    """
    names = platforms.split(",")
    if out is not None and out.suffix != ".jaxdiff":
        raise ValueError(f"--out must end in .jaxdiff, got {out}")
    if not set(names) <= {"cpu", "cuda", "rocm", "tpu"}:
        raise ValueError(f"--platforms are some of cpu, cuda, rocm and tpu, like cpu,cuda; got {platforms!r}")
    if is_pipeline(run):
        raise ValueError(f"{run} is a text-to-image directory, whose tokenizers are no part of a program: give a run")
    if out is None:
        run = open_run(run)
        out = run / "sampler.jaxdiff"
    arrays = out.with_suffix(".npz")
    for path in [out] if embed_weights else [out, arrays]:
        try_file(path, "--out")
    with for_export(dtype), busy(f"lowering for {platforms}"):
        run = open_run(run)
        experiment = change_sampling(
            load_run(run, trust=trust), guidance_fn=guidance_fn, solver=solver, grid=grid, steps=steps
        )
        trained = parameters(experiment, run, params, weights=weights)
        exported = export_sampler(experiment, trained, embed_weights=embed_weights, guidance=guidance, platforms=names)
    with ExitStack() as stack:
        if not embed_weights:
            # Both are on disk before either has its name: an old program never meets new weights for long.
            part = stack.enter_context(replacing(arrays))
            np.savez(part, **flat_weights(experiment.model.merge_frozen(trained)))  # type: ignore[arg-type]
        write_program(out, exported)
    if not embed_weights:
        print(arrays)
    print(out)
    print(f"  {dtype} on {platforms}: {signature(exported)}")
