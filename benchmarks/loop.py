"""What `fit` adds to the bare jitted step, long and short, as a ratio: python benchmarks/loop.py."""

import argparse
import statistics
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


# Images a step, and steps per measurement: of about 140 ms, and of about 5 ms on two cores.
CASES = {64: 10, 2: 1000}


def clocks():
    """Seconds of the wall clock, and CPU seconds of this thread: of Python, not of what the devices compute."""
    return np.array([time.perf_counter(), time.thread_time()])


def bare(step, state, batch, count):
    """Seconds a step: dispatch all, then wait once."""
    start = clocks()
    for _ in range(count):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return state, (clocks() - start) / count


def looped(step, state, host, count, mesh):
    """Seconds a step in `fit`: batches from the host, metrics to a file, a progress bar."""

    def batches():
        while True:
            yield host

    with tempfile.TemporaryDirectory() as folder:
        log = train.jsonl_logger(Path(folder) / "metrics.jsonl")
        start = clocks()
        state = train.fit(step, state, batches(), steps=int(state.step) + count, mesh=mesh, log=log)
        jax.block_until_ready(state)
        return state, (clocks() - start) / count


def compare(mesh, batch, steps, rounds):
    """Print both, measured in turns."""
    optimizer = train.adamw(1e-4)
    state = train.init_state(init, optimizer, jax.random.key(0), mesh)
    step = train.make_step(loss, optimizer, key=jax.random.key(1), ema=train.ema.constant(0.999))
    host = {"x": np.random.default_rng(0).normal(size=(batch, 14, 14, 4)).astype(np.float32)}
    state, _ = bare(step, state, train.shard_batch(host, mesh), 3)
    state, _ = looped(step, state, host, 3, mesh)
    pairs = []
    for _ in range(rounds):
        state, alone = bare(step, state, train.shard_batch(host, mesh), steps)
        state, within = looped(step, state, host, steps, mesh)
        pairs.append((alone, within))
    # The fastest of each: other work on the machine only ever adds time.
    alone, within = (np.min(column, axis=0) for column in zip(*pairs, strict=True))
    middle = statistics.median(within[0] / alone[0] for alone, within in pairs)
    own = statistics.median(within[1] - alone[1] for alone, within in pairs)
    print(
        f"bare step {1e3 * alone[0]:.2f} ms, in fit {1e3 * within[0]:.2f} ms; ratio {within[0] / alone[0]:.3f}, median "
        f"{middle:.3f}; CPU of the loop's thread {1e6 * own:.0f} us a step more, {own / alone[0]:.1%} of the step"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="measurements, alternating (default 15)")
    rounds = parser.parse_args().rounds
    for batch, steps in CASES.items():
        compare(train.make_mesh(), batch, steps, rounds)


if __name__ == "__main__":
    main()
