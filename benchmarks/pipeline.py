"""How much faster the input pipeline is than the fashion run's step, as a ratio: python benchmarks/pipeline.py."""

import argparse
import time
from pathlib import Path

import jax

from jaxdiff import train
from jaxdiff.recipe import load

FASHION = Path(__file__).parents[1] / "experiments" / "fashion.py"


def loading(stream, count):
    """Seconds a batch: read, stacked and normalized, ready for the devices."""
    start = time.perf_counter()
    for _ in range(count):
        next(stream)
    return (time.perf_counter() - start) / count


def training(step, state, batch, count):
    """Seconds a step of a batch that lies on the device."""
    start = time.perf_counter()
    for _ in range(count):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return state, (time.perf_counter() - start) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement (default 10)")
    parser.add_argument("--batches", type=int, default=200, help="batches per measurement (default 200)")
    parser.add_argument("--rounds", type=int, default=10, help="measurements, alternating (default 10)")
    arguments = parser.parse_args()
    experiment = load(FASHION)()
    mesh = train.make_mesh()
    part = experiment.training
    state = train.init_state(experiment.model.init, part.optimizer, jax.random.key(0), mesh)
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(1), ema=part.ema)
    batch = train.shard_batch(next(part.batches(0)), mesh)
    state, _ = training(step, state, batch, 2)
    pairs = []
    for _ in range(arguments.rounds):
        state, used = training(step, state, batch, arguments.steps)
        # A new stream each time: what another one reads ahead would compete with the step.
        stream = part.batches(0)
        next(stream)
        pairs.append((used, loading(stream, arguments.batches)))
        stream.close()
    # The fastest of each: other work on the machine only ever adds time.
    used, loaded = (part.batch / min(column) for column in zip(*pairs, strict=True))
    print(f"pipeline {loaded:.0f} images/s, step {used:.0f} images/s; ratio {loaded / used:.1f} (goal: at least 3)")


if __name__ == "__main__":
    main()
