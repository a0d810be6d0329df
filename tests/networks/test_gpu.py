"""What a GPU would be given, lowered on a machine without one: cuDNN's attention, convolutions with channels last."""

import re
from functools import partial

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ShapeDtypeStruct
from jax.sharding import AbstractDevice, AbstractMesh

from jaxdiff import networks
from jaxdiff.networks import attention
from jaxdiff.networks.attention import attend

CALL = re.compile(r"custom_call @__cudnn\$(\w+)")


@pytest.fixture
def lower(monkeypatch):
    """(function, its arguments) -> StableHLO for cuda; JAX asks for cuDNN's version, which this machine has not."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda wanted: False)
    gpu = AbstractMesh((), (), abstract_device=AbstractDevice("GPU", None, "gpu"))

    def lower(f, *args) -> str:
        with jax.sharding.use_abstract_mesh(gpu):
            return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()

    return lower


@pytest.mark.parametrize(
    ("dtype", "head_dim", "calls"),
    [
        (jnp.bfloat16, 64, ["fmhaSoftmax"]),
        (jnp.float32, 64, []),
        (jnp.bfloat16, 36, ["fmhaSoftmax"]),  # padded to 40
        (jnp.bfloat16, 256, ["fmhaSoftmax"]),  # since Hopper
        (jnp.bfloat16, 264, []),
    ],
)
def test_attention_in_half_precision_is_cudnns(lower, dtype, head_dim, calls):
    q = ShapeDtypeStruct((2, 16, 2, head_dim), dtype)
    assert CALL.findall(lower(attend, q, q, q)) == calls
    assert CALL.findall(lower(partial(attend, causal=True), q, q, q)) == calls


@pytest.mark.parametrize("length", [16, 77])
@pytest.mark.parametrize("causal", [False, True])
def test_masked_attention_and_its_gradient_by_cudnn_or_by_the_formula(lower, length, causal):
    q = ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16)
    mask = ShapeDtypeStruct((2, length), bool)
    f = lambda q, k, v, mask: attend(q, k, v, mask=mask, causal=causal).astype(jnp.float32).sum()  # noqa: E731
    assert CALL.findall(lower(f, q, q, q, mask)) == ["fmhaScaleBiasSoftmax"]
    calls = CALL.findall(lower(jax.grad(f, (0, 1, 2)), q, q, q, mask))
    # Backwards, cuDNN takes even numbers of tokens alone.
    assert ("fmhaScaleBiasSoftmaxBackward" in calls) == (length % 2 == 0)


def test_forward_mode_keeps_no_logits_of_long_sequences(lower):
    """Nor does reverse over forward mode."""
    tokens = 8192
    q = ShapeDtypeStruct((1, tokens, 1, 64), jnp.bfloat16)

    def moved(q):
        y, dy = jax.jvp(lambda q: attend(q, q, q), (q,), (jnp.ones_like(q),))
        return (y * dy).sum()

    for f in (moved, jax.grad(moved)):
        text = lower(f, q)
        assert "fmhaSoftmax" in CALL.findall(text)
        shapes = re.findall(r"tensor<([\dx]+)x(?:bf16|f32)>", text)
        largest = max(np.prod([int(n) for n in shape.split("x")]) for shape in shapes)
        assert largest == tokens * attention.KEY_BLOCK  # of tokens * tokens logits


def test_before_hopper_heads_have_128_channels(lower, monkeypatch):
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda wanted: False)
    for head_dim, calls in ((128, ["fmhaSoftmax"]), (136, [])):
        q = ShapeDtypeStruct((2, 16, 2, head_dim), jnp.bfloat16)
        assert CALL.findall(lower(attend, q, q, q)) == calls


@pytest.mark.parametrize("causal", [False, True])
def test_what_cudnn_is_asked_for_is_the_formula(causal, monkeypatch):
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **more: plain(*a, **more))
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 36)).astype(np.float32)
    where = np.arange(5)[None, None, None] < np.array([5, 3])[:, None, None, None]
    options = {"scale": 0.3, "causal": causal}
    np.testing.assert_allclose(
        attention._cudnn(q, k, v, where, **options), attention._formula(q, k, v, where, **options), atol=1e-6
    )


@pytest.mark.slow
def test_a_training_unet_has_cudnns_attention_and_channels_last(lower):
    network = networks.UNet(widths=(16, 32), num_blocks=1, groups=8, dtype=jnp.bfloat16)
    apply = networks.as_apply(network)
    x, time = ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), ShapeDtypeStruct((2,), jnp.float32)
    params = jax.eval_shape(lambda key: networks.init(network, key, jnp.zeros(x.shape), {}), jax.random.key(0))
    text = lower(jax.grad(lambda params, x, time: apply(params, x, time, {}).sum()), params, x, time)
    assert set(CALL.findall(text)) == {"fmhaSoftmax", "fmhaSoftmaxBackward"}
    layouts = re.findall(
        r"stablehlo\.convolution\(.*dim_numbers = \[(.*?)\]x\[.*?\]->\[(.*?)\].*-> tensor<(\S+)>", text
    )
    # Forwards and for the inputs: channels last. For the weights the batch is what is summed over, still in place.
    assert {pair[:2] for pair in layouts} == {("b, 0, 1, f", "b, 0, 1, f"), ("f, 0, 1, b", "0, 1, b, f")}
    assert len(layouts) > 30 and all(shape.endswith("bf16") for *_, shape in layouts)
    # Nothing moves the channels of [B, H, W, C] on the way.
    moved = re.findall(r"stablehlo\.transpose .*dims = \[(.*?)\]", text)
    assert not {"0, 3, 1, 2", "0, 2, 3, 1"} & set(moved)
