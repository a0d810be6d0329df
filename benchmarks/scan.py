"""What sampling costs beside the network, as ratios measured in one run.

    python benchmarks/scan.py

Sides of a ratio are timed in turns, and the ratio is that of the medians, so that a busy machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import jax
import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff.networks import UNet, as_apply, init

KEY = jax.random.key(0)
BATCH = (16, 28, 28, 1)


def in_turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = perf_counter()
            run()
            if turn:
                seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def fashion_unet():
    """(apply, params, cond) of the network of experiments/fashion.py."""
    module = UNet(
        (32, 64),
        num_blocks=1,
        mid_attention=False,
        resample="pool",
        groups=8,
        patch_size=2,
        scale_shift=True,
        num_classes=10,
    )
    cond = {"label": jnp.zeros(BATCH[0], jnp.int32)}
    return as_apply(module), init(module, KEY, jnp.zeros(BATCH), cond), cond


def scan_over_network(steps: int = 25) -> float:
    """Time of a step of the scan over that of a bare call of the network."""
    apply, params, cond = fashion_unet()
    levels, x = jd.grids.by_time(jd.processes.Flow(), steps), jax.random.normal(KEY, BATCH)

    @jax.jit
    def sample(params, x, key):
        return jd.sample(jd.denoiser(apply, params, jd.parameterize.velocity, cond), jd.solvers.euler(), levels, x, key)

    call = jax.jit(lambda params, x, noise: apply(params, x, noise, cond))
    noise = jnp.full(BATCH[0], 0.5)

    def calls():
        for _ in range(steps):
            call(params, x, noise).block_until_ready()

    seconds = in_turns({"scan": lambda: sample(params, x, KEY).block_until_ready(), "calls": calls}, repeats=15)
    print(f"  step of the scan {1e3 * seconds['scan'] / steps:.2f} ms, call {1e3 * seconds['calls'] / steps:.2f} ms")
    return seconds["scan"] / seconds["calls"]


def compile_time(few: int = 10, many: int = 1000) -> float:
    """Time to trace and compile the sampling of `many` steps over that of `few`."""
    apply, params, cond = fashion_unet()
    x = jnp.zeros(BATCH)

    def compiled(steps):
        levels = jd.grids.by_time(jd.processes.Flow(), steps)

        def run():
            jax.clear_caches()
            sample = lambda params, levels, x, key: jd.sample(  # noqa: E731
                jd.denoiser(apply, params, jd.parameterize.velocity, cond), jd.solvers.euler(), levels, x, key
            )
            jax.jit(sample).lower(params, levels, x, KEY).compile()

        return run

    seconds = in_turns({"few": compiled(few), "many": compiled(many)}, repeats=3)
    print(f"  {few} steps {seconds['few']:.2f} s, {many} steps {seconds['many']:.2f} s")
    return seconds["many"] / seconds["few"]


def main() -> None:
    """Prints every ratio beside its limit."""
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"step of the scan / bare call of the network: {scan_over_network():.3f} (at most 1.05)")
    print(f"compile time of 1000 steps / of 10: {compile_time():.3f} (at most 1.1)")


if __name__ == "__main__":
    main()
