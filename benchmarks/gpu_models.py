"""Three networks as they are used: images a second of their samplers and train steps in bfloat16, and what bounds them.

The parts "ddpm", "dit" and "sd" of `gpu.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import networks, train
from jaxdiff.plan import CHIPS, flops

Report = Callable[[dict[str, Any]], None]
STEPS = 20  # of a sampler

# bfloat16 operations a second, products of dense matrices: NVIDIA's data sheets (half of the figure "with sparsity"),
# and those of `jaxdiff.plan`. The first name that a device's kind contains counts.
PEAKS = {
    "H200 NVL": 836e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 836e12, "H100": 989e12, "GB200": 2500e12,
    "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "RTX 4090": 165e12,
    "TPU v5 lite": CHIPS["v5e"].flops, "TPU v5e": CHIPS["v5e"].flops, "TPU v5": CHIPS["v5p"].flops,
    "TPU v6": CHIPS["v6e"].flops, "TPU7x": CHIPS["tpu7x"].flops / CHIPS["tpu7x"].devices,
}  # fmt: skip


class Model(NamedTuple):
    """A network and its use.

    Attributes:
        module: computes in bfloat16.
        shape: of what it denoises.
        cond: shapes of an example's conditions; an integer one where it is ().
        train: examples in an update.
        draws: sizes of batches that are drawn.
    """

    module: Any
    shape: tuple[int, ...]
    cond: dict[str, tuple[int, ...]]
    train: int
    draws: tuple[int, ...]


def model(name: str, *, tiny: bool) -> Model:
    """One of the three, as published; or one of its kind that compiles in a second."""
    half: dict[str, Any] = {"dtype": jnp.bfloat16}
    small: dict[str, Any] = half | {"widths": (16, 32), "num_blocks": 1, "groups": 8} if tiny else half
    if name == "ddpm":
        side, batch = (8, 4) if tiny else (32, 128)
        return Model(networks.ddpm_cifar10(**small), (side, side, 3), {}, batch, (batch,))
    if name == "dit":
        # As SiT has it: a learned variance is another loss, and a last layer of twice the width.
        shape, batch = ((8, 8, 4), 4) if tiny else ((32, 32, 4), 64)
        size = {"width": 32, "layers": 2, "num_heads": 2, "num_classes": 10} if tiny else {}
        return Model(networks.sit_xl_2(**half | size), shape, {"label": ()}, batch, (batch,))
    num_heads = networks.TransformerConfig(depth=(1, 1), num_heads=(2, 2))
    size = {"attention": (0,), "transformer": num_heads, "context_dim": 12} if tiny else {}
    side, token = (8, 12) if tiny else (64, 768)
    module = networks.stable_diffusion_1(**small | size)
    return Model(module, (side, side, 4), {"tokens": (77, token)}, 2 if tiny else 8, (1, 2) if tiny else (1, 8))


def jobs(name: str, report: Report, *, tiny: bool, deadline: float) -> list[Callable[[], None]]:
    """A network's samplers, then its train step: what they hold is freed in between."""
    made, meter = model(name, tiny=tiny), Meter(report, name, deadline)
    return [*(partial(draw, made, batch, meter) for batch in made.draws), partial(update, made, meter)]


class Meter:
    """Compiles, times and reports.

    Args:
        report: takes a row.
        name: of the network.
        deadline: by `time.monotonic`, when to stop repeating.
    """

    def __init__(self, report: Report, name: str, deadline: float):
        self._report, self._name, self._deadline = report, name, deadline
        self._hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self._hits += event == "/jax/compilation_cache/cache_hits"

    def measure(self, prediction: dict[str, Any], lowered: Any, call: Callable[[Any], Callable[[], Any]]) -> None:
        """Reports a program: once when it is compiled, and again when it has been timed.

        Args:
            prediction: what it is, its "batch" and its "flops".
            lowered: the program.
            call: the compiled program -> a function that starts it and returns what to wait for.
        """
        prediction, hits, start = {"model": self._name, "by": "jaxdiff", **prediction}, self._hits, time.perf_counter()
        compiled = lowered.compile()
        prediction |= {"compile_s": time.perf_counter() - start, "from_cache": self._hits > hits}
        memory = compiled.memory_analysis()
        for kind in ("argument", "temp"):
            prediction[f"{kind}_gib"] = gib(getattr(memory, f"{kind}_size_in_bytes", None))
        self._report(prediction)
        seconds = timed(call(compiled), jax.block_until_ready, self._deadline)
        device = jax.devices()[0]
        # The process's most so far, this program's arrays included.
        prediction["peak_gib"] = gib((device.memory_stats() or {}).get("peak_bytes_in_use"))
        self._report(prediction | rates(prediction["batch"], seconds, prediction["flops"], device.device_kind))


def gib(size: int | None) -> float | None:
    return None if size is None else size / 2**30


def timed(start: Callable[[], Any], wait: Callable[[Any], Any], deadline: float) -> float:
    """Median seconds of a call, of five rounds of about half a second, fewer where the deadline comes."""
    wait(start())  # warms up
    begin = time.perf_counter()
    wait(start())
    count, rounds = max(1, round(0.5 / (time.perf_counter() - begin))), []
    while len(rounds) < 5 and (not rounds or time.monotonic() + 2 * count * rounds[-1] < deadline):
        begin, last = time.perf_counter(), None
        for _ in range(count):
            last = start()
        wait(last)
        rounds.append((time.perf_counter() - begin) / count)
    return median(rounds)


def rates(batch: int, seconds: float, count: float, kind: str) -> dict[str, Any]:
    """What follows from the seconds of a call: images and operations a second, and the share of the device's peak."""
    peak = next((peak for name, peak in PEAKS.items() if name.lower() in kind.lower()), None)
    achieved = count / seconds
    return {
        "seconds": seconds, "images_per_s": batch / seconds, "tflops": achieved / 1e12,
        "utilization": None if peak is None else achieved / peak,
    }  # fmt: skip


def forward_flops(made: Model, batch: int) -> int:
    """Operations of products and convolutions in one evaluation of the network.

    It is traced in float32, where attention is a formula: what a fused kernel does cannot be counted.
    """
    apply = networks.as_apply(made.module.clone(dtype=jnp.float32))
    x = jax.ShapeDtypeStruct((batch, *made.shape), jnp.float32)
    noise, cond = jax.ShapeDtypeStruct((batch,), jnp.float32), conditions(made, batch, jax.ShapeDtypeStruct)
    return flops.of_jaxpr(jax.make_jaxpr(apply)(shapes(made), x, noise, cond))


def conditions(made: Model, batch: int, fill: Callable[[tuple[int, ...], Any], Any]) -> dict[str, Any]:
    """A batch's conditions, each as fill(shape, dtype) has it."""
    return {name: fill((batch, *shape), jnp.float32 if shape else jnp.int32) for name, shape in made.cond.items()}


def shapes(made: Model) -> Any:
    """Those of the parameters."""
    x, cond = jax.ShapeDtypeStruct((1, *made.shape), jnp.float32), conditions(made, 1, jax.ShapeDtypeStruct)
    return jax.eval_shape(lambda: networks.init(made.module, jax.random.key(0), x, cond))


def filled(tree: Any, dtype: Any) -> Any:
    """Parameters made on the device, without a zero in them: waves, which compile faster than random numbers."""

    def fill(path: Any, a: Any) -> Any:
        count = jnp.arange(math.prod(a.shape), dtype=jnp.uint32) * jnp.uint32(2654435761)  # Knuth's multiplier
        wave = (count >> 8).astype(jnp.float32) * 2.0**-23 - 1  # about uniform in [-1, 1)
        spread = math.sqrt(math.prod(a.shape[:-1]) / 3) if len(a.shape) > 1 else 10
        return ((path[-1].key == "scale") + wave / spread).reshape(a.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def draw(made: Model, batch: int, meter: Meter) -> None:
    """A sampler of DDIM's steps with parameters in bfloat16; guided where there is a condition."""
    apply, prediction = networks.as_apply(made.module), jd.parameterize.zero_based(jd.parameterize.eps)
    levels = jd.grids.ddpm(jd.processes.Discrete.linear(1000), STEPS)

    def sampled(params: Any, keys: Any, cond: Any, null: Any, scale: Any) -> Any:
        if cond:
            denoise = jd.guidance.cfg_batched(apply, params, prediction, cond=cond, null_cond=null, scale=scale)
        else:
            denoise = jd.denoiser(apply, params, prediction)
        x = jd.noise.prior(levels, keys, (batch, *made.shape))
        return jd.sample(denoise, jd.solvers.ddim(), levels, x, keys)

    params = jax.jit(lambda: filled(shapes(made), jnp.bfloat16))()
    keys = jax.random.split(jax.random.key(1), batch)
    cond, null = conditions(made, batch, jnp.ones), conditions(made, batch, jnp.zeros)
    arguments = params, keys, cond, null, jnp.float32(3.0)
    evaluations = STEPS * (2 if made.cond else 1)
    row_of = {"what": f"sampler, {STEPS} steps", "batch": batch, "flops": evaluations * forward_flops(made, batch)}
    meter.measure(row_of, jax.jit(sampled).lower(*arguments), lambda compiled: lambda: compiled(*arguments))


def update(made: Model, meter: Meter) -> None:
    """A train step: loss, gradient, clipping, AdamW and an average; its state is donated."""
    process, prediction = jd.processes.Discrete.linear(1000), jd.parameterize.zero_based(jd.parameterize.eps)
    dropout = getattr(made.module, "dropout", 0) > 0
    loss = jd.losses.denoising_loss(networks.as_apply(made.module), process, prediction, dropout=dropout)
    mesh, optimizer = train.make_mesh(devices=jax.devices()[:1]), train.adamw(1e-4)
    step = train.make_step(loss, optimizer, key=jax.random.key(0), ema=train.ema.constant(0.9999))
    like = shapes(made)
    state = train.init_state(lambda key: filled(like, jnp.float32), optimizer, jax.random.key(0), mesh)
    x = np.random.default_rng(0).standard_normal((made.train, *made.shape), np.float32)
    batch = train.shard_batch({"x": x, **conditions(made, made.train, np.ones)}, mesh)
    held = [state]

    def call(compiled: Any) -> Callable[[], Any]:
        def start() -> Any:
            held[0], metrics = compiled(held[0], batch, None)
            return metrics

        return start

    # The backward pass counts twice the forward one, whatever it computes again.
    row_of = {"what": "train step", "batch": made.train, "flops": 3 * forward_flops(made, made.train)}
    meter.measure(row_of, step.lower(state, batch), call)
