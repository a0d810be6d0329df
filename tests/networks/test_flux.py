"""Flux: conditions, both loops, published size."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import networks
from jaxdiff.networks import Flux

TINY = {
    "width": 16,
    "layers": 2,
    "single_layers": 3,
    "num_heads": 2,
    "axes": (2, 2, 4),
    "context_dim": 6,
    "pooled_dim": 5,
}
X = jax.ShapeDtypeStruct((2, 4, 6, 3), jnp.float32)
NOISE = jax.ShapeDtypeStruct((2,), jnp.float32)
COND = {"tokens": jax.ShapeDtypeStruct((2, 3, 6), jnp.float32), "vector": jax.ShapeDtypeStruct((2, 5), jnp.float32)}


def shapes(module, x=X, cond=COND):
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


@pytest.mark.slow
def test_blocks_are_stacked():
    tree = shapes(Flux(**TINY))
    assert tree["transformer_blocks.*"]["attn.norm_q"]["scale"].shape == (2, 8)
    assert tree["single_transformer_blocks.*"]["norm.linear"]["bias"].shape == (3, 48)
    assert tree["x_embedder"]["kernel"].shape == (12, 16)


@pytest.mark.slow
def test_published_size():
    cond = {"tokens": (1, 1, 4096), "vector": (1, 768), "guidance": (1,)}
    cond = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in cond.items()}
    tree = shapes(Flux(guidance=True), jax.ShapeDtypeStruct((1, 2, 2, 16), jnp.float32), cond)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 11_901_408_320


@pytest.mark.slow
def test_options():
    module = Flux(**TINY, guidance=True, concat_channels=2, remat="dots", dtype=jnp.bfloat16)
    cond = COND | {"guidance": NOISE, "concat": jax.ShapeDtypeStruct((2, 4, 6, 2), jnp.float32)}
    tree = shapes(module, cond=cond)
    assert tree["x_embedder"]["kernel"].shape == (20, 16)
    y = jax.eval_shape(networks.as_apply(module), tree, X, NOISE, cond)
    assert (y.shape, y.dtype) == (X.shape, jnp.float32)


@pytest.mark.parametrize(
    ("changes", "x", "cond", "message"),
    [
        ({}, X, COND | {"guidance": NOISE}, "unknown condition 'guidance'"),
        ({"guidance": True}, X, COND, "'guidance', which is missing"),
        ({"concat_channels": 2}, X, COND, "'concat', which is missing"),
        ({}, jax.ShapeDtypeStruct((2, 4, 5, 3), jnp.float32), COND, "multiples of the patch"),
        ({"axes": (2, 2, 2)}, X, COND, "sum to width / heads"),
    ],
)
def test_refusals(changes, x, cond, message):
    apply = networks.as_apply(Flux(**TINY | changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(apply, {}, x, NOISE, cond)
