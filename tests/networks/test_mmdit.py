"""MMDiT: runs of equal blocks, its table of positions, conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import MMDiT

TINY = {"width": 8, "layers": 4, "num_heads": 2, "context_dim": 6, "pooled_dim": 5, "grid": 2, "pos_embed_max_size": 4}
X = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
NOISE = jax.ShapeDtypeStruct((2,), jnp.float32)
COND = {"tokens": jax.ShapeDtypeStruct((2, 3, 6), jnp.float32), "vector": jax.ShapeDtypeStruct((2, 5), jnp.float32)}


def shapes(module):
    return jax.eval_shape(lambda key: networks.init(module, key, X, COND), jax.random.key(0))


@pytest.mark.slow
def test_runs_of_equal_blocks():
    blocks = {k: v for k, v in shapes(MMDiT(**TINY | {"layers": 7, "dual": (0, 1, 4, 6)})).items() if "blocks" in k}
    lengths = {k: v["norm1.linear"]["bias"].shape for k, v in blocks.items()}
    # 8 features; a block has 6 modulations, one with a second attention 9.
    assert lengths == {
        "transformer_blocks.*": (2, 72),
        "transformer_blocks.2+.*": (2, 48),
        "transformer_blocks.4+.*": (1, 72),
        "transformer_blocks.5+.*": (1, 48),
        "transformer_blocks.6": (72,),
    }
    # The text ends in the last block's keys and values.
    assert "attn.add_k_proj" in blocks["transformer_blocks.6"]
    assert not {"attn.to_add_out", "ff_context"} & blocks["transformer_blocks.6"].keys()


@pytest.mark.parametrize(
    ("changes", "x", "cond", "message"),
    [
        ({}, X, {"tokens": COND["tokens"]}, "'vector', which is missing"),
        ({}, X, COND | {"label": NOISE}, "unknown condition 'label'"),
        ({}, X, COND | {"tokens": jax.ShapeDtypeStruct((2, 3, 7), jnp.float32)}, "tokens must have shape"),
        ({}, jax.ShapeDtypeStruct((2, 10, 4, 3), jnp.float32), COND, "8 at most"),
        ({"dual": (4,)}, X, COND, "dual must name blocks from 0 to 3"),
    ],
)
def test_refusals(changes, x, cond, message):
    apply = networks.as_apply(MMDiT(**TINY | changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(apply, {}, x, NOISE, cond)


@pytest.mark.slow
def test_output_in_half_precision():
    module = MMDiT(**TINY, dtype=jnp.bfloat16, out_channels=7, qk_norm=True, remat="dots")
    y = jax.eval_shape(networks.as_apply(module), shapes(module), X, NOISE, COND)
    assert (y.shape, y.dtype) == ((2, 4, 4, 7), jnp.float32)


@pytest.mark.slow
def test_starts_as_zero_and_never_trains_its_positions():
    module = MMDiT(**TINY)
    x, cond = np.ones(X.shape, np.float32), {name: np.ones(a.shape, np.float32) for name, a in COND.items()}
    params = networks.init(module, jax.random.key(0), x, cond)
    table = params["pos_embed.pos_embed"].reshape(4, 4, 8)
    # 4 x 4 patches over a range of 2 x 2: rows and columns half a step apart.
    np.testing.assert_allclose(table[1, 3, ::2], np.sin([1.5, 1.5 + np.pi / 2, 0.5, 0.5 + np.pi / 2]), atol=1e-6)

    @jax.jit
    def evaluate(params):
        def total(params):
            y = networks.as_apply(module)(params, x, np.ones(2, np.float32), cond)
            return y.sum(), y

        return jax.grad(total, has_aux=True)(params)

    assert not np.any(evaluate(params)[1])
    grads, _ = evaluate(jax.tree.map(lambda a: a + 0.1, params))
    assert not np.any(grads.pop("pos_embed.pos_embed"))
    assert np.any(grads["pos_embed.proj"]["bias"])
