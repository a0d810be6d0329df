"""Cached layers and merged tokens on a trained run: python benchmarks/caching.py [RUN] --page docs/parallel.md.

The error is the root mean square distance to the samples of the whole network with the same noise, beside that of fewer
steps, which cost less as well.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from few_steps import write_table

import jaxdiff as jd
from jaxdiff import networks, run, trees
from jaxdiff.pretrained import open_run
from jaxdiff.seeds import example_keys

STEPS, BATCH, REPEATS = 40, 8, 3


def last_layer(params, stage: str) -> str:
    """The last layer of a stage of the decoder."""
    order = ("resnets", "attentions", "cross_attentions")
    names = [name for name in params if name.startswith(f"{stage}.")]
    parts = [name.removeprefix(f"{stage}.").split(".") for name in names]
    upsamplers = [name for name, (kind, _) in zip(names, parts, strict=True) if kind == "upsamplers"]
    place = [
        (int(number), order.index(kind), name)
        for name, (kind, number) in zip(names, parts, strict=True)
        if kind in order
    ]
    return upsamplers[0] if upsamplers else max(place)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="*", default=[Path("fashion"), Path("emoji")])
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    lines = ["| run | | steps | error | time |", "|---|---|---|---|---|"]
    for folder in arguments.run:
        lines += measured(folder)
    if arguments.page:
        write_table(arguments.page, "caching", lines)


def measured(folder: Path) -> list[str]:
    experiment = run.load_run(open_run(folder))
    params = run.parameters(experiment, folder)
    model, sampling, condition = experiment.model, experiment.sampling, experiment.condition
    given = condition.choose(np.arange(BATCH))
    keys = example_keys(0, BATCH)
    x = jd.noise.normal_like(keys, jnp.zeros((BATCH, *experiment.medium.shape)))
    solver = jd.solvers.dpmpp_2m()

    def make(params, apply):
        conds = [condition.encode(params, each) for each in (given, condition.without(given))]
        return jd.guidance.cfg(*(jd.denoiser(apply, params, model.prediction, c) for c in conds), sampling.guidance)

    def plain(apply, steps):
        return lambda params, x: jd.sample(make(params, apply), solver, sampling.grid(steps), x, keys)

    def cached(name, every, change=False):
        network = networks.as_cached(model.network, (name,), change=change)
        return lambda params, x: jd.sample_cached(
            lambda apply: make(params, apply), network, solver, sampling.grid(STEPS), x, keys, every=every
        )

    cases = [("whole network", STEPS, plain(model.apply, STEPS))]
    cases += [("fewer steps", n, plain(model.apply, n)) for n in (STEPS // 2, STEPS // 4)]
    # A network beside a text encoder has its layers a level deeper.
    levels = len(getattr(model.network, "widths", ())) if "network" not in params else 0
    for kept in range(1, levels):
        name = last_layer(params, f"up_blocks.{levels - 1 - kept}")
        cases += [(f"`{name}` once in {k} steps", STEPS, cached(name, k)) for k in (2, 3, 5)]
    if isinstance(model.network, networks.DiT):
        cases += [(f"change of all `blocks` once in {k} steps", STEPS, cached("blocks", k, True)) for k in (2, 3, 5)]
    if any("attentions" in name for name in trees.flatten(params)):
        for ratio in (0.25, 0.5):
            apply = networks.control_attention(model.apply, networks.merged_tokens(ratio, least=1))
            cases.append((f"`merged_tokens({ratio}, least=1)`", STEPS, plain(apply, STEPS)))

    lines, expected, first = [], None, None
    for name, steps, draw in cases:
        compiled = jax.jit(draw)
        drawn, took = jax.block_until_ready(compiled(params, x)), []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(params, x))
            took.append(time.perf_counter() - begun)
        expected, first = drawn if expected is None else expected, min(took) if first is None else first
        error = float(jnp.sqrt(jnp.mean(jnp.square(drawn - expected))))
        lines.append(f"| {folder.name} | {name} | {steps} | {error:.3f} | {min(took) / first:.2f} |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
