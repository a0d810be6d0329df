"""What `fit` adds to the bare jitted step, as a ratio: python benchmarks/loop.py."""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import train


def init(key, width=64, depth=4):
    keys = jax.random.split(key, depth)
    middle = {f"conv{i}": 0.04 * jax.random.normal(k, (3, 3, width, width)) for i, k in enumerate(keys)}
    return middle | {"enter": 0.2 * jax.random.normal(key, (3, 3, 4, width)), "leave": jnp.zeros((3, 3, width, 4))}


def loss(params, key, batch):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    noise = jax.random.normal(key, batch["x"].shape)
    hidden = conv(batch["x"] + noise, params["enter"])
    for name in sorted(name for name in params if name.startswith("conv")):
        hidden = hidden + jax.nn.silu(conv(hidden, params[name]))
    return jnp.mean((conv(hidden, params["leave"]) - noise) ** 2), {}


def bare(step, state, batch, count):
    """Seconds a step: dispatch all, then wait once."""
    start = time.perf_counter()
    for _ in range(count):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return state, (time.perf_counter() - start) / count


def looped(step, state, host, count, mesh):
    """Seconds a step in `fit`: batches from the host, metrics to a file, a progress bar."""

    def batches():
        while True:
            yield host

    with tempfile.TemporaryDirectory() as folder:
        log = train.jsonl_logger(Path(folder) / "metrics.jsonl")
        start = time.perf_counter()
        state = train.fit(step, state, batches(), steps=int(state.step) + count, mesh=mesh, log=log)
        jax.block_until_ready(state)
        return state, (time.perf_counter() - start) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement (default 10)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements, alternating (default 15)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default 64)")
    arguments = parser.parse_args()
    mesh = train.make_mesh()
    optimizer = train.adamw(1e-4)
    state = train.init_state(init, optimizer, jax.random.key(0), mesh)
    step = train.make_step(loss, optimizer, key=jax.random.key(1), ema=train.ema.constant(0.999))
    host = {"x": np.random.default_rng(0).normal(size=(arguments.batch, 14, 14, 4)).astype(np.float32)}
    state, _ = bare(step, state, train.shard_batch(host, mesh), 3)
    pairs = []
    for _ in range(arguments.rounds):
        state, alone = bare(step, state, train.shard_batch(host, mesh), arguments.steps)
        state, within = looped(step, state, host, arguments.steps, mesh)
        pairs.append((alone, within))
    # The fastest of each: other work on the machine only ever adds time.
    alone, within = (min(column) for column in zip(*pairs, strict=True))
    print(f"bare step {1e3 * alone:.2f} ms, in fit {1e3 * within:.2f} ms; ratio {within / alone:.3f}")


if __name__ == "__main__":
    main()
