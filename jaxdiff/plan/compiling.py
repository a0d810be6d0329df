"""Ahead-of-time compilation of an experiment's train step or sampler, for devices that this machine may lack."""

from __future__ import annotations

import math
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import train
from jaxdiff.experiment import Experiment
from jaxdiff.plan import flops, graphs, hlo
from jaxdiff.plan.cache import Compiled, cached
from jaxdiff.plan.gpus import asked_about
from jaxdiff.plan.graphs import Graphs
from jaxdiff.quantize import Quantized, Weights, quantize
from jaxdiff.sampler import sampler
from jaxdiff.seeds import seed_key
from jaxdiff.sharding import batch_sharding, shard_params, use_mesh
from jaxdiff.types import Params

_OOM = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T"))}


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. If the program does not fit, the compiler reports only the total.

    Attributes:
        arguments: the state and the batch, or the parameters and the keys.
        outputs: e.g. the new state.
        shared: outputs in the memory of donated arguments.
        temporaries: peak of the activations and other temporary arrays.
        code: the program itself.
        total: arguments + outputs - shared + temporaries + code.
    """

    arguments: int
    outputs: int | None
    shared: int | None
    temporaries: int | None
    code: int | None
    total: int


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        memory: bytes of one device.
        module: the parsed text of the program; None: the program does not fit.
        traced_flops: operations of the traced program on all devices together (see `flops.of_jaxpr`).
        model_flops: operations of the model alone: three times the loss for a train step, since a gradient costs two
            more (Chowdhery et al. 2022, arXiv:2204.02311, app. B), and all of them for a sampler.
        seconds: time of tracing and compiling (the first time, where the answer is read from `cache.cached`'s folder).
        graphs: CUDA graphs; None for other devices, and where XLA does not list them.
    """

    memory: Memory
    module: hlo.Module | None
    traced_flops: int
    model_flops: int
    seconds: float
    graphs: Graphs | None


def train_step(experiment: Experiment, mesh: Mesh) -> Program:
    """Compile the train step of `jaxdiff train`.

    Args:
        experiment: built within `use_mesh(mesh)`, so that it computes in the precision of the mesh's devices.
        mesh: real, simulated or described devices.

    Raises:
        ValueError: the batch or the parameters cannot be split over the mesh.
    """
    part = experiment.training
    _check_batch(part.batch, mesh)
    begun = time.perf_counter()
    state = train.state_shapes(
        experiment.model.init, part.optimizer, mesh, ema=part.ema, ema_memory=part.ema_memory, averaged=part.averaged
    )
    batch = _described_batch(part.batch_spec, part.batch, mesh)
    frozen = _described(experiment.frozen_of_loss(), mesh)
    step = train.make_step(
        part.loss,
        part.optimizer,
        key=seed_key(experiment.seed),
        ema=part.ema,
        grad_accum_steps=part.grad_accum_steps,
        frozen=frozen,
        given=part.given,
        averaged=part.averaged,
    )
    context = frozen if part.given is None else jax.eval_shape(part.given, state, frozen)

    def loss(params: Params, context: Any, key: Any, batch: Any) -> Any:
        return part.loss(params if context is None else (params, context), key, batch)

    arguments = state.params, context, jax.random.key(0), batch
    with use_mesh(mesh), asked_about(mesh.devices.flat[0]):
        once = jax.make_jaxpr(loss)(*arguments)
        gradient = jax.make_jaxpr(jax.grad(loss, has_aux=True))(*arguments)
        lowered = step.lower(state, batch)
    tracing = time.perf_counter() - begun
    traced = flops.of_jaxpr(gradient)
    # A gradient costs two more than the loss, but for what is frozen; and is all that is done but for recomputations.
    model = min(3 * flops.of_jaxpr(once), traced)
    return _program(lowered, (state, batch), mesh, traced, model, tracing)


def sampling(experiment: Experiment, mesh: Mesh, weights: Weights | None = None) -> Program:
    """Compile the sampler of `jaxdiff sample` for batches of `experiment.training.batch` examples.

    Args:
        experiment: built within `use_mesh(mesh)`.
        mesh: real, simulated or described devices.
        weights: "int8" or "float8": kernels in 8 bits, see `quantize.quantize`.

    Raises:
        ValueError: the batch or the parameters cannot be split over the mesh.
    """
    part = experiment.training
    _check_batch(part.batch, mesh)
    begun = time.perf_counter()
    average = train.state_shapes(experiment.model.init, part.optimizer, mesh, averaged=part.averaged).ema
    average = average if weights is None else _in_8_bits(average, weights, mesh)
    frozen = experiment.model.frozen
    params = average if frozen is None else (average, _described(frozen, mesh))
    keys = jax.ShapeDtypeStruct((part.batch,), jax.random.key(0).dtype, sharding=batch_sharding(mesh))
    cond = _described_batch(experiment.condition.spec, part.batch, mesh)
    with use_mesh(mesh), asked_about(mesh.devices.flat[0]):
        arguments = params, keys, cond, experiment.guidance
        generate = sampler(experiment.model, experiment.sampling, experiment.condition, experiment.medium, mesh=mesh)
        traced = flops.of_jaxpr(jax.make_jaxpr(generate)(*arguments))
        lowered = generate.lower(*arguments)  # type: ignore[attr-defined]
    return _program(lowered, arguments, mesh, traced, traced, time.perf_counter() - begun)


def _in_8_bits(params: Params, weights: Weights, mesh: Mesh) -> Any:
    """Shapes and shardings of parameters in 8 bits: scales are small, and lie whole on each device."""
    small = jax.eval_shape(partial(quantize, weights=weights), params)

    described: Any = jax.ShapeDtypeStruct

    def place(x: Any, made: Any) -> Any:
        if not isinstance(made, Quantized):
            return x
        values, scale = made.values, made.scale
        return Quantized(
            described(values.shape, values.dtype, sharding=x.sharding),
            described(scale.shape, scale.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
        )

    return jax.tree.map(place, params, small)


def _check_batch(batch: int, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % parts:
        raise ValueError(
            f"a batch of {batch} cannot be split over data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}: it must be a multiple of {parts}"
        )


def _described_batch(spec: Any, batch: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    place = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype, sharding=place) for name, x in spec.items()}


def _described(tree: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of a tree, since described devices cannot hold arrays."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shard_params(tree, mesh)
    )


def _program(
    lowered: jax.stages.Lowered, arguments: Any, mesh: Mesh, traced: int, model: int, tracing: float
) -> Program:
    compiled = cached(_compile, lowered, mesh)
    seconds = tracing + compiled.seconds
    if compiled.sizes is None:
        memory = Memory(_bytes_of(arguments), None, None, None, None, compiled.total)
        return Program(memory, None, traced, model, seconds, None)
    memory = Memory(*compiled.sizes, compiled.total)
    found = graphs.parse(compiled.thunks) if compiled.thunks else None
    return Program(memory, hlo.parse(compiled.text), traced, model, seconds, found)


def _compile(lowered: jax.stages.Lowered, mesh: Mesh) -> Compiled:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # libtpu's own dump, since JAX cannot read back every instruction of a newer libtpu; and a GPU's list of thunks.
        dumping: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        platform = mesh.devices.flat[0].platform
        try:
            compiled = lowered.compile(compiler_options=None if platform == "cpu" else dumping)
        except jax.errors.JaxRuntimeError as error:
            needed = _OOM.search(str(error))
            if needed is None:
                raise
            return Compiled(_parse_size(needed[1], needed[2]), None, "", "", time.perf_counter() - begun)
        dumped = list(Path(folder).glob("*.after_optimizations.txt")) if platform == "tpu" else []
        text = dumped[0].read_text() if dumped else compiled.as_text() or ""
        thunks = list(Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt"))
        listed = thunks[0].read_text() if thunks else ""
    stats: Any = compiled.memory_analysis()
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    shared, code = stats.alias_size_in_bytes, stats.generated_code_size_in_bytes
    temporaries = stats.temp_size_in_bytes
    total = arguments + outputs - shared + temporaries + code
    sizes = arguments, outputs, shared, temporaries, code
    return Compiled(total, sizes, text, listed, time.perf_counter() - begun)


def _parse_size(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def _bytes_of(tree: Any) -> int:
    """Bytes of a tree's arrays on one device, by their shardings."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(tree)
        if isinstance(x, jax.ShapeDtypeStruct)
    )
