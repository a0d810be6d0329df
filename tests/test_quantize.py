"""Weights in 8 bits: how far they are off, that networks take them, and that a loop reads them as they are."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_pipeline, toy
from helpers.weights import random_weights

import jaxdiff as jd
from jaxdiff import networks, quantize, train
from jaxdiff.quantize import Quantized

X = jnp.linspace(-1, 1, 2 * 8 * 8 * 2).reshape(2, 8, 8, 2)
TIME = jnp.full(2, 0.3)
KEY = jax.random.key(0)


@pytest.fixture
def every_kernel(monkeypatch):
    """Tiny kernels, too."""
    monkeypatch.setattr(quantize, "MIN_SIZE", 1)


def whole(params):
    """The weights that networks see."""
    is_small = lambda leaf: isinstance(leaf, Quantized)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(x.scale.dtype) if is_small(x) else x, params, is_leaf=is_small)


def small(params):
    return [x for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Quantized)) if isinstance(x, Quantized)]


@pytest.fixture(scope="module")
def dit():
    network = networks.DiT(width=64, layers=2, num_heads=2, patch_size=2, mlp_ratio=1)
    params = random_weights(lambda key: networks.init(network, key, X), 0)
    return networks.as_apply(network), jax.tree.map(jnp.asarray, params)


@pytest.mark.usefixtures("x64")
def test_each_column_has_its_own_scale():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 40, 60)) * 10.0 ** rng.integers(-6, 6, (3, 1, 60))
    w[0, :, 0] = 0
    kernel = {"layer": {"kernel": jnp.asarray(w), "bias": jnp.asarray(w[0])}, "table": jnp.asarray(w)}
    largest = np.abs(w).max(axis=1, keepdims=True)
    for weights, bound in (("int8", largest / 254), ("float8", np.maximum(np.abs(w) / 16, largest / 448 / 2**10))):
        made = quantize.quantize(kernel, weights)
        found = made["layer"]["kernel"]
        assert found.values.dtype == quantize.DTYPES[weights] and found.shape == w.shape and found.ndim == 3
        assert found.scale.shape == (3, 1, 60) and found.scale.dtype == jnp.float64
        off = np.abs(found.astype(jnp.float64) - w)
        assert np.all(off <= bound * (1 + 1e-12)) and off.max(initial=0, where=w != 0) > 0
        assert off[..., 1:].max(axis=1).min() > 0  # what is not a multiple of the scale is rounded
        assert made["layer"]["bias"] is kernel["layer"]["bias"] and made["table"] is kernel["table"]
    # What the format holds is exact, whatever the column's scale.
    for weights, held in (("int8", [127, -64, 3, 0]), ("float8", [448, -0.5, 3.25, 0])):
        w = jnp.asarray(held * 1024, jnp.float64)[:, None] * jnp.asarray([[1, 0.3, 1e9]])
        np.testing.assert_allclose(quantize.quantize({"kernel": w}, weights)["kernel"].astype(w.dtype), w, rtol=1e-15)


def test_half_precision_is_scaled_in_float32():
    w = jnp.linspace(-3, 3, 4096, dtype=jnp.bfloat16).reshape(64, 64)
    found = quantize.quantize({"kernel": w})["kernel"]
    assert found.scale.dtype == jnp.float32 and found.astype(jnp.bfloat16).dtype == jnp.bfloat16
    off = np.abs(found.astype(jnp.float32) - w.astype(jnp.float32))
    assert off.max() <= np.abs(w.astype(jnp.float32)).max() / 254 * 1.001


@pytest.mark.usefixtures("every_kernel")
@pytest.mark.parametrize("weights", ["int8", pytest.param("float8", marks=pytest.mark.slow)])
def test_a_network_computes_with_the_rounded_weights_on_any_mesh(dit, weights):
    apply, params = dit
    made = quantize.quantize(params, weights)
    assert len(small(made)) >= 8 and any(x.ndim == 3 for x in small(made))  # stacks of layers, too
    want = jax.jit(apply)(whole(made), X, TIME)
    np.testing.assert_allclose(jax.jit(apply)(made, X, TIME), want, atol=1e-6)
    assert np.abs(want - jax.jit(apply)(params, X, TIME)).max() > 1e-4
    mesh = toy.mesh("fsdp")
    placed = jax.device_put(params, train.shard_params(params, mesh))
    with jd.sharding.use_mesh(mesh):
        run = jax.jit(apply).lower(quantize.quantize(placed, weights), X, TIME).compile()
        np.testing.assert_allclose(run(quantize.quantize(placed, weights), X, TIME), want, atol=1e-5)
    # What is gathered are the bytes.
    gathered = set(re.findall(r"= (\w+)\[(?:1,)?64,64\]\S* all-gather\(", run.as_text()))
    assert gathered and (weights != "int8" or gathered == {"s8"})


@pytest.mark.slow
@pytest.mark.usefixtures("every_kernel")
def test_derivatives_by_x(dit):
    apply, params = dit
    made = quantize.quantize(params)
    loss = lambda x, params: jnp.sum(jnp.sin(apply(params, x, TIME)))  # noqa: E731
    slope = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(slope(X, made), slope(X, whole(made)), atol=1e-6)


def test_a_loop_reads_them_as_they_are():
    network = networks.MLP(width=64, num_blocks=2)
    x = jnp.ones((4, 2))
    params = networks.init(network, KEY, x)
    process = jd.processes.Flow()
    levels, solver = jd.grids.by_time(process, 5), jd.solvers.heun()

    @jax.jit
    def draw(params, x):
        denoise = jd.denoiser(networks.as_apply(network), params, jd.parameterize.velocity)
        return jd.sample(denoise, solver, levels, x, KEY)

    made = quantize.quantize(params)
    assert len(small(made)) >= 4
    loops = [line for line in draw.lower(made, x).compile().as_text().splitlines() if " while(" in line]
    (loop,) = (line for line in loops if "s8[64,64]" in line)
    assert "f32[64,64]" not in loop.split(" while(")[0]
    np.testing.assert_allclose(draw(made, x), draw(whole(made), x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("every_kernel")
def test_loading_in_8_bits_is_quantizing_what_is_loaded(tmp_path):
    directory = tiny_pipeline.write(tmp_path)
    plain, made = (jd.text_to_image.load(directory, steps=1, param_dtype=each) for each in (None, "int8"))
    want = {name: params if name == "vae" else quantize.quantize(params) for name, params in plain.params.items()}
    jax.tree.map(np.testing.assert_array_equal, made.params, want)
    assert small(made.params["unet"]) and small(made.params["text_encoder"]) and not small(made.params["vae"])
    mesh = toy.mesh("fsdp")
    place = lambda tree: train.shard_params(tree, mesh)  # noqa: E731
    spread = jd.text_to_image.load(directory, steps=1, param_dtype="int8", place=place)
    jax.tree.map(np.testing.assert_array_equal, spread.params, made.params)
    adapters = {"mid_block": {"kernel": {"delta": jnp.ones((1, 1))}}}
    for use in (lambda: networks.lora.merge(made.params, adapters), lambda: networks.lora.init(KEY, made.params, 1)):
        with pytest.raises(ValueError, match="before weights are stored in 8 bits"):
            use()
    with pytest.raises(ValueError, match="a model is saved before weights are stored in 8 bits"):
        jd.interop.save(made.models["unet"], tmp_path / "saved")
    for dtype in (jnp.int8, "int4", "fp8"):
        with pytest.raises(ValueError, match="a floating dtype, or one of int8, float8 by name, got"):
            jd.text_to_image.load(directory, param_dtype=dtype)


def test_few_rows_stay_and_layers_of_others_take_the_weight(every_kernel):
    few = jnp.ones((5, 5, 1, 512), jnp.bfloat16)  # whose scales would be larger than what is saved
    assert quantize.quantize({"kernel": few})["kernel"] is few
    layer = nn.Dense(16)
    params = layer.init(KEY, jnp.ones((1, 8)))["params"]
    made = quantize.quantize(params)
    assert small(made)
    np.testing.assert_allclose(
        layer.apply({"params": made}, jnp.ones((1, 8))),
        layer.apply({"params": whole(made)}, jnp.ones((1, 8))),
        rtol=1e-6,
    )


def test_mistakes():
    with pytest.raises(ValueError, match="weights must be one of int8, float8, got 'int4'"):
        quantize.quantize({"kernel": jnp.ones((64, 64))}, "int4")
