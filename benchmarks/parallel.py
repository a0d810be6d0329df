"""Sampling parallel in time on trained runs: python benchmarks/parallel.py [RUN ...] --page docs/parallel.md.

Rounds are evaluations of the network in sequence, each for `window` times as many inputs; the error is the root mean
square distance to the samples of the same steps one after the other.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from few_steps import write_table

import jaxdiff as jd
from jaxdiff import run
from jaxdiff.pretrained import open_run
from jaxdiff.seeds import example_keys

STEPS, BATCH = 100, 4
CASES = [("ddim", 100, 1e-2), ("ddim", 100, 1e-3), ("ddim", 25, 1e-3), ("heun", 50, 1e-3), ("ddpm", 100, 1e-2)]
SOLVERS = {"ddim": jd.solvers.ddim(), "heun": jd.solvers.heun(), "ddpm": jd.solvers.ddim(1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="*", default=[Path("fashion")])
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| run | solver | window | tolerance | rounds | error | time, parallel / in sequence |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in arguments.run:
        lines += measured(folder)
    if arguments.page:
        write_table(arguments.page, "table", lines)


def measured(folder: Path) -> list[str]:
    experiment = run.load_run(open_run(folder))
    params = run.parameters(experiment, folder)
    model, sampling, condition = experiment.model, experiment.sampling, experiment.condition
    cond = condition.choose(np.arange(BATCH))
    encoded = [condition.encode(params, each) for each in (cond, condition.without(cond))]
    both = [jd.denoiser(model.apply, params, model.prediction, each) for each in encoded]
    denoise = sampling.guide(*both, sampling.guidance)
    keys = example_keys(0, BATCH)
    x = jd.noise.normal_like(keys, jnp.zeros((BATCH, *experiment.medium.shape)))
    levels = sampling.grid(STEPS)
    lines = []
    for name, window, tolerance in CASES:
        solver = SOLVERS[name]
        one = jax.jit(lambda x, s=solver: jd.sample(denoise, s, levels, x, keys))
        many = jax.jit(
            lambda x, s=solver, w=window, t=tolerance: jd.sample_parallel(
                denoise, s, levels, x, keys, window=w, tolerance=t
            )
        )
        (expected, (drawn, rounds)), took = (one(x), many(x)), []
        for f in (one, many):
            begun = time.perf_counter()
            jax.block_until_ready(f(x))
            took.append(time.perf_counter() - begun)
        error = float(jnp.sqrt(jnp.mean(jnp.square(drawn - expected))))
        lines.append(
            f"| {folder.name} | `{name}` | {window} | {tolerance:g} | {int(rounds.max())} | {error:.4f} "
            f"| {took[1] / took[0]:.1f} |"
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
