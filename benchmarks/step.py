"""Images a second of the train step with 1, 2 and 4 accumulation steps, and with several updates a dispatch, as ratios.

python benchmarks/step.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import networks, train

ROWS = {"accumulate 1": {}, "accumulate 2": {"grad_accum_steps": 2}, "accumulate 4": {"grad_accum_steps": 4}}
DISPATCHES = {f"steps_per_call {n}": {"steps_per_call": n} for n in (1, 8)}


def builder(network, batch, shape):
    """A function of make_step's options: (updates a call, memory for temporaries, seconds a call)."""
    mesh, optimizer = train.make_mesh(), train.adamw(1e-4)
    example = jnp.zeros((1, *shape))
    loss = jd.losses.denoising_loss(networks.as_apply(network), jd.processes.EDM(), jd.parameterize.edm(0.5))
    images = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)

    def build(**options):
        state = train.init_state(lambda key: networks.init(network, key, example), optimizer, jax.random.key(0), mesh)
        step = train.make_step(loss, optimizer, key=jax.random.key(1), ema=train.ema.constant(0.999), **options)
        count = step.steps_per_call
        stacked = {"x": np.stack([images] * count) if count > 1 else images}
        placed = train.shard_batch(stacked, mesh, axis=int(count > 1))
        memory = step.lower(state, placed).compile().memory_analysis()
        held = [state]

        def call():
            start = time.perf_counter()
            held[0], metrics = step(held[0], placed)
            jax.block_until_ready(metrics)
            return time.perf_counter() - start

        call()  # compiles
        return count, getattr(memory, "temp_size_in_bytes", float("nan")), call

    return build


def table(title, made, batch, rounds):
    # Rounds alternate, and the fastest of each counts: other work on the machine only ever adds time.
    seconds = {name: [] for name in made}
    for _ in range(rounds):
        for name, (_, _, call) in made.items():
            seconds[name].append(call())
    speed = {name: count * batch / min(seconds[name]) for name, (count, _, _) in made.items()}
    first = next(iter(made))
    print(f"\n{title}\n{'':16} images/s  ratio  temporaries, ratio")
    for name, (_, memory, _) in made.items():
        print(f"{name:16} {speed[name]:8.1f}  {speed[name] / speed[first]:5.2f}  {memory / made[first][1]:18.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the U-Net (default 64)")
    parser.add_argument("--batch", type=int, default=32, help="images in an update (default 32)")
    parser.add_argument("--rounds", type=int, default=8, help="measurements, alternating (default 8)")
    arguments = parser.parse_args()
    shape, batch = (16, 16, 3), arguments.batch
    unet = networks.UNet((arguments.width, 2 * arguments.width), num_blocks=1, attention=(1,))
    print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, images of {shape}, {batch} an update")
    build = builder(unet, batch, shape)
    table("U-Net", {name: build(**options) for name, options in ROWS.items()}, batch, arguments.rounds)
    # Where the host's work between two updates counts: a network of microseconds.
    build = builder(networks.MLP(width=16), batch, (2,))
    made = {name: build(**options) for name, options in DISPATCHES.items()}
    table("MLP", made, batch, 10 * arguments.rounds)


if __name__ == "__main__":
    main()
