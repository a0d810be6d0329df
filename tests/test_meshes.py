"""Networks on every mesh: the numbers of one device, and the collectives that theory asks for."""

import functools
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.weights import random_weights

import jaxdiff as jd
from jaxdiff import networks, sharding, train
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

NETWORKS = {
    "dit": networks.DiT(width=32, layers=2, num_heads=4, patch_size=2, num_classes=10),
    "unet": networks.UNet(widths=(16, 32), num_blocks=1, attention=(1,), head_dim=8, groups=4, num_classes=10),
}
MESHES = {
    "one device": {"data": 1},
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 1, "tensor": 4},
    "data fsdp": {"data": 2, "fsdp": 4},
    "data tensor": {"data": 4, "tensor": 2},
    "fsdp tensor": {"data": 1, "fsdp": 4, "tensor": 2},
    "data sequence": {"data": 4, "sequence": 2},
    "fsdp sequence": {"data": 1, "fsdp": 4, "sequence": 2},
    "data fsdp tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "data fsdp sequence": {"data": 2, "fsdp": 2, "sequence": 2},
    "data tensor sequence": {"data": 2, "tensor": 2, "sequence": 2},
}
# Plain descent: Adam divides by the gradient's size, so where that is a rounding error, it moves all the same.
SGD = optax.sgd(0.1)
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny arrays are split, too, as large ones are."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)


def mesh(sizes):
    return train.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def init(name, key):
    """As a network draws its parameters."""
    return networks.init(NETWORKS[name], key, jnp.zeros((1, 8, 8, 4)), {"label": jnp.zeros((1,), jnp.int32)})


@functools.cache
def _drawn(name):
    return random_weights(functools.partial(init, name), 0)


def drawn(name):
    """Parameters none of which is zero, of which nothing is compiled; copies, since a state takes them over."""
    return jax.tree.map(np.copy, _drawn(name))


def batch():
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((8, 8, 8, 4)).astype(np.float32), "label": np.arange(8, dtype=np.int32)}


@functools.cache
def trained(name, where):
    """(compiled program, loss, gradient's norm, parameters after two steps)."""
    apply = networks.as_apply(NETWORKS[name])
    loss = jd.losses.denoising_loss(apply, jd.processes.Flow(), jd.parameterize.time_scaled(jd.parameterize.velocity))
    where = mesh(MESHES[where])
    state = train.state_from_params(drawn(name), SGD, where)
    step = train.make_step(loss, SGD, key=jax.random.key(1), ema=train.ema.constant(0.9))
    data = train.shard_batch(batch(), where)
    program = step.lower(state, data).compile()
    for _ in range(2):
        state, metrics = program(state, data, None)
    return program, jax.tree.map(np.asarray, (metrics["loss"], metrics["grad_norm"], state.params, state.ema))


def count(program, kind):
    return len(re.findall(rf" {kind}(?:-start)?\(", program.as_text()))


def exchanged(program):
    """Numbers of elements that a device passes to each of the others, in all-to-alls."""
    lines = [line for line in program.as_text().splitlines() if re.search(r" all-to-all(-start)?\(", line)]
    kinds = [re.search(r"\[([\d,]+)\]", line)[1] for line in lines]
    return [math.prod(map(int, shape.split(","))) for shape in kinds]


# A U-Net takes a minute to compile on a mesh: it is split in all ways that go together at once, and by examples alone.
UNET = {"data fsdp tensor", "data fsdp sequence"}
SPLIT = [where for where in MESHES if where != "one device"]
CASES = [p for p in itertools.product(NETWORKS, SPLIT) if (p[0] == "unet") == (p[1] in UNET)] + [("unet", "data")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "where"), CASES)
def test_training_equals_that_of_one_device(name, where):
    program, got = trained(name, where)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(trained(name, "one device")[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Tokens and weights never change which axis is split; with fsdp a condition's rows do, see `sharding.product`.
    rows = 8 * 6 * NETWORKS["dit"].width
    assert all(size <= rows * ("fsdp" in MESHES[where]) for size in exchanged(program))
    if where == "data":
        assert count(program, "all-gather") == 0
        assert count(program, "all-reduce") <= 2  # the gradient's and the mean loss, combined


@pytest.mark.slow
def test_layers_are_gathered_one_by_one():
    """With fsdp no stack of weights is ever whole on a device, and the backward pass gathers again."""
    program, _ = trained("dit", "fsdp")
    text = program.as_text()
    width, layers = NETWORKS["dit"].width, NETWORKS["dit"].layers
    gathered = re.findall(rf"f32\[{width},{4 * width}\]\S* all-gather", text)
    assert len(gathered) == 2
    assert f"f32[{layers},{width},{4 * width}]" not in text
    assert f"f32[{layers},{width},{width // 2}]" in text  # a device's part of four times the width: it looked right


@pytest.mark.slow
def test_heads_and_inner_layers_are_split_over_tensor():
    """Two sums of the tokens forward and two backward for each block (Shoeybi et al. 2019, sec. 3), in a loop."""
    program, _ = trained("dit", "tensor")
    tokens = [line for line in program.as_text().splitlines() if re.search(r"f32\[8,16,32\]\S*\)? all-reduce", line)]
    assert len(tokens) == 4, tokens


SAMPLED = {
    "one device": {"data": 1},
    "data": {"data": 8},
    "fsdp tensor": {"data": 1, "fsdp": 4, "tensor": 2},
    "sequence": {"data": 2, "sequence": 4},
}


@functools.cache
def sampled(name, where):
    process, key, where = jd.processes.Flow(), jax.random.key(2), mesh(SAMPLED[where])
    levels = jd.grids.by_time(process, 4)
    params, label = drawn(name), jnp.arange(8) % 10
    apply = networks.as_apply(NETWORKS[name])

    def run(params, keys, label):
        with sharding.use_mesh(where):
            x = sharding.constrain_tokens(jd.noise.prior(levels, keys, (8, 8, 8, 4)))
            denoise = jd.denoiser(apply, params, jd.parameterize.velocity, {"label": label})
            # One call of the network in the program, and another array beside x in the loop.
            return jd.sample(denoise, jd.solvers.dpmpp_2m(), levels, x, keys)

    placed = jax.device_put(params, sharding.shard_params(params, where))
    return np.asarray(jax.jit(run)(placed, jax.random.split(key, 8), label))


@pytest.mark.slow
@pytest.mark.parametrize("where", [where for where in SAMPLED if where != "one device"])
@each_network
def test_sampling_equals_that_of_one_device(name, where):
    np.testing.assert_allclose(sampled(name, where), sampled(name, "one device"), atol=2e-6)


@pytest.mark.slow
def test_an_experiments_sampler_shares_out_what_does_not_divide():
    """Ten pictures are shared out among eight devices, and each is what it is alone."""
    made = load(EXPERIMENTS / "fashion.py")(width=8)
    params, keys, cond = made.model.init(jax.random.key(0)), example_keys(0, 10), {"label": jnp.arange(10) % 10}
    where = mesh({"data": 2, "fsdp": 4})
    parts = made.model, replace(made.sampling, steps=2), made.condition, made.medium
    generate = sampler(*parts, mesh=where)
    placed = jax.device_put(params, sharding.shard_params(params, where))
    program = generate.lower(placed, keys, cond, 2.0).compile()
    shared = program(placed, keys, cond, 2.0)
    np.testing.assert_allclose(shared, sampler(*parts)(params, keys, cond, 2.0), atol=2e-6)
    assert "[2,28,28,1]" in program.as_text()  # 16 by 8 devices


@functools.cache
def measured(where):
    process, key, where = jd.processes.VP(), jax.random.key(3), mesh(SAMPLED[where])
    params, x = drawn("dit"), jax.random.normal(key, (8, 8, 8, 4))
    apply = networks.as_apply(NETWORKS["dit"])
    levels = process(jnp.linspace(1.0, 0.01, 4))

    def run(params, x):
        with sharding.use_mesh(where):
            denoise = jd.denoiser(apply, params, jd.parameterize.eps, {"label": jnp.arange(8)})
            return jd.likelihood.log_likelihood(denoise, levels, x, key, probes=2).log_prob

    placed = jax.device_put(params, sharding.shard_params(params, where))
    return np.asarray(jax.jit(run)(placed, jax.device_put(x, sharding.batch_sharding(where))))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "fsdp tensor"])
def test_likelihood_equals_that_of_one_device(where):
    np.testing.assert_allclose(measured(where), measured("one device"), rtol=1e-5)


def test_a_unet_with_rows_and_features_split_is_refused():
    message = "tensor or over sequence, not over both; got tensor=2, sequence=4"
    with sharding.use_mesh(mesh({"data": 1, "tensor": 2, "sequence": 4})), pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(init, "unet"), jax.random.key(0))
