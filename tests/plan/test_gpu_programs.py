"""Programs compiled for GPUs that are not there, by the extra plan-gpu: what they launch, write and keep in memory."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.plans import EXPERIMENT, plan

from jaxdiff import sharding, trees
from jaxdiff.plan import chips, collectives, compiling, flops, gpus, hlo, kernels, links, topology
from jaxdiff.recipe import load
from jaxdiff.sharding import parse_mesh, use_mesh

pytest.importorskip("jax_cuda12_plugin", reason="needs the extra plan-gpu")
pytestmark = pytest.mark.slow
DDPM = Path(__file__).parents[2] / "experiments" / "cifar10_ddpm.py"
TINY = {"widths": (32, 64), "num_blocks": 1}


def program_of(make, gpus="h100:1", axes="", **knobs):
    mesh = parse_mesh(axes, devices=topology(gpus).devices)
    with use_mesh(mesh):
        experiment = load(DDPM)(**knobs)
    return make(experiment, mesh)


@pytest.fixture(scope="module")
def step():
    return program_of(compiling.train_step, **TINY)


def _launches(module, kind):
    return sum(each.count for each in kernels.kernels(module) if each.kind == kind)


def _gathered(program):
    """Bytes of all that eight devices gather in one run."""
    mesh = parse_mesh("fsdp=8", devices=topology("h100:8").devices)
    return sum(each.bytes for each in collectives.collectives(program.module, mesh) if each.kind == "all-gather")


def test_convolutions_read_their_kernels_as_they_are_stored(step):
    # In the order of their axes 3 x 3 kernels, gradients, moments and averages would be transposed or copied.
    assert _launches(step.module, "cuDNN convolution") > 30
    found = [
        array
        for run in hlo.runs(step.module)
        if not run.fusion and kernels.kind_of(step.module, run) in ("transpose", "copy")
        for array in run.instruction.results
    ]
    # The largest kernels have 147 kB, all small arrays together 57.
    assert not [array for array in found if array.bytes > 100_000], found


def test_attention_is_cudnns_and_no_embedding_is_broadcast_in_memory(step):
    assert _launches(step.module, "cuDNN attention") >= 3  # forward, backward and its sum
    broadcast = [
        run.instruction.name
        for run in hlo.runs(step.module)
        if not run.fusion and "wrapped_broadcast" in run.instruction.name and run.instruction.results[0].bytes > 2**20
    ]
    assert not broadcast


def test_small_arrays_are_updated_together_and_large_ones_by_one_kernel(step):
    params = jax.eval_shape(load(DDPM)(**TINY).model.init, jax.random.key(0))
    small = sum(x.size < 4096 for x in jax.tree.leaves(params))
    large = len(jax.tree.leaves(params)) - small
    rest = sum(each.count for each in kernels.kernels(step.module) if each.part == "rest")
    # A large one: its gradient's norm, in two parts at most, and all that is its own. The sums of some gradients are
    # finished here, too.
    assert rest < 2 * large + small // 2


def test_activations_are_written_in_half_precision_and_masks_not_at_all(step):
    written = [
        array
        for run in hlo.runs(step.module)
        if not run.fusion and kernels.kind_of(step.module, run)
        for array in run.instruction.results
        if array.shape[:3] == (128, 32, 32) and array.shape[-1] > 3
    ]
    assert len(written) > 40 and {array.dtype for array in written} == {"bf16"}


def test_gradients_of_norms_and_biases_share_their_sums(step):
    """Of a norm: both sums over positions, both by group, and those of its scale and bias. Of a bias: in two parts."""
    params = jax.eval_shape(load(DDPM)(**TINY).model.init, jax.random.key(0))
    names = [trees.keys(path)[-1] for path, _ in jax.tree.leaves_with_path(params)]
    norms = names.count("scale")
    sums = [each.count for each in kernels.kernels(step.module) if (each.kind, each.part) == ("reduction", "backward")]
    assert sum(sums) < 3 * norms + 2 * (names.count("bias") - norms)


def test_to_gather_weights_writes_and_keeps_no_more_activations(step):
    split = program_of(compiling.train_step, "h100:8", "fsdp=8", batch=8 * 128, **TINY)
    written, alone = (sum(each.written for each in kernels.kernels(program.module)) for program in (split, step))
    assert written < 1.05 * alone
    # Some weights are replicated or gathered, a megabyte in all; keeping each elementwise value took 3 times as much.
    assert split.memory.temporaries < 1.3 * step.memory.temporaries
    # Once forwards, in half precision, and again backwards, but for the first layers; a sampler gathers before its loop
    # of 1,000 steps.
    params = jax.eval_shape(load(DDPM)(**TINY).model.init, jax.random.key(0))
    weights = sum(2 * x.size for x in jax.tree.leaves(params) if x.size >= sharding.MIN_SHARDED_SIZE)
    sampler = program_of(compiling.sampling, "h100:8", "fsdp=8", batch=64, **TINY)
    assert _gathered(split) > 1.8 * weights
    assert weights < _gathered(sampler) < 0.3 * 1000 * weights  # but those that project the embedding of the time


def test_a_sampler_stays_on_the_device_in_cuda_graphs_and_transposes_no_weights():
    program = program_of(compiling.sampling, **TINY)
    graphs = program.graphs
    # XLA launches cuDNN's convolutions by themselves, and so what is between two of them where it is less than five.
    assert set(graphs.apart) <= {"Convolution", "CustomKernel", "CuDnn"}
    assert graphs.kernels > 2 * graphs.apart["CustomKernel"] and graphs.count <= graphs.apart["Convolution"] + 2
    assert graphs.apart["CustomKernel"] <= 4 * (graphs.apart["Convolution"] + graphs.apart["CuDnn"])
    module = program.module
    inside = [run for run in hlo.runs(module) if not run.fusion and run.times > 1]
    assert len(inside) > 100
    assert not {run.instruction.opcode for run in inside} & {"send", "recv", "infeed", "outfeed", "copy-start"}
    assert not [run for run in inside if kernels.kind_of(module, run) == "transpose"]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_as_its_formula(masked):
    """Of queries [2, 64, 4, 64] and 96 keys: two products forward, and backward five, one of which is made again."""
    mask = jnp.ones((2, 1, 64, 96), bool) if masked else None

    def counts(implementation, dtype):
        q, k, v = (jnp.zeros((2, length, 4, 64), dtype) for length in (64, 96, 96))
        attention = partial(jax.nn.dot_product_attention, mask=mask, implementation=implementation)
        forward = lambda *args: attention(*args).sum()  # noqa: E731
        return [flops.of_jaxpr(jax.make_jaxpr(f)(q, k, v)) for f in (forward, jax.grad(forward, argnums=(0, 1, 2)))]

    with gpus.asked_about(topology("h100:1").devices[0]):
        forward, gradient = counts("cudnn", jnp.bfloat16)
    plain, with_its_gradient = counts("xla", jnp.float32)
    assert forward == plain == 2 * 2 * 2 * 4 * 64 * 96 * 64
    assert gradient == with_its_gradient + forward // 2


@pytest.mark.parametrize("name", ["a100:8", "h100:2x4", "h200:8", "b200:2x4", "l40s:8"])
def test_described_gpus(name, tmp_path, capsys):
    path = tmp_path / "points.py"
    path.write_text(EXPERIMENT)
    told = plan(path, "--topology", name, "--mesh", "data=2,fsdp=4", "--width", "256", "--batch", "1024")
    assert told["fits"] and told["kernels"] and "compiler's guess" in capsys.readouterr().out
    assert told["flops"] >= told["model_flops"] > 0
    assert told["capacity"] == 0.75 * chips.GPUS[name.partition(":")[0]].hbm
    roof = told["roofline"]
    assert roof["seconds"] == max(roof["compute"], roof["memory"], roof["interconnect"]) == roof[roof["bound"]]
    hosts = 2 if "x" in name else 1
    mesh = parse_mesh("data=2,fsdp=4", devices=topology(name).devices)
    assert links.hosts_of(mesh, ("data", "fsdp")) == (hosts, 8 // hosts)
    assert all(each["times"].keys() == {"in a host", "between hosts"} for each in told["collectives"])
    assert any(each["times"]["between hosts"] > 0 for each in told["collectives"]) == (hosts > 1)
    kinds = {(each["kind"], tuple(each["axes"])) for each in told["collectives"]}
    assert ("all-gather", ("fsdp",)) in kinds
    assert any("data" in axes for kind, axes in kinds if kind in ("all-reduce", "reduce-scatter"))
