"""DiT: published sizes, conditions, one loop over its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import DiT

TINY = {"width": 8, "layers": 2, "num_heads": 2, "num_classes": 4}
X = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
NOISE = jax.ShapeDtypeStruct((2,), jnp.float32)
LABEL = jax.ShapeDtypeStruct((2,), jnp.int32)


def shapes(module, x=X, **cond):
    cond = cond or {"label": LABEL}
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


def trace(module, x=X, cond=None):
    cond = {"label": LABEL} if cond is None else cond
    return jax.eval_shape(networks.as_apply(module), shapes(module), x, NOISE, cond)


def count(module):
    tree = shapes(module, jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_sizes():
    # Peebles & Xie 2022, table 4, whose counts hold the table of 16 x 16 positions.
    assert count(networks.dit_xl_2()) + 256 * 1152 == 675_129_632
    assert round((count(networks.dit_s_2()) + 256 * 384) / 1e6) == 33
    assert networks.sit_xl_2() == networks.dit_xl_2(learned_variance=False)


def test_outputs():
    f, frac = trace(DiT(**TINY, learned_variance=True, out_channels=5, dtype=jnp.bfloat16))
    assert f.shape == frac.shape == (2, 4, 4, 5)
    assert f.dtype == frac.dtype == jnp.float32


def test_compile_time_does_not_grow_with_depth():
    def length(layers):
        module = DiT(**TINY | {"layers": layers})
        program = jax.make_jaxpr(networks.as_apply(module))(shapes(module), X, NOISE, {"label": LABEL})
        return str(program).count("\n")

    assert length(2) == length(20)


@pytest.mark.parametrize(
    ("changes", "x", "cond", "message"),
    [
        ({}, X, {}, "'label', which is missing"),
        ({}, X, {"label": LABEL, "tokens": NOISE}, "unknown condition 'tokens'"),
        ({}, jax.ShapeDtypeStruct((2, 4, 5, 3), jnp.float32), {"label": LABEL}, "multiples of the patch"),
        ({}, jax.ShapeDtypeStruct((2, 4, 3), jnp.float32), {"label": LABEL}, "H, W, C"),
        ({"num_heads": 3}, X, {"label": LABEL}, "width must be a multiple"),
    ],
)
def test_refusals(changes, x, cond, message):
    apply = networks.as_apply(DiT(**TINY | changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(apply, {}, x, NOISE, cond)


def randomized(module):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32) / 3, shapes(module))


@pytest.mark.slow
def test_own_embeddings_that_are_copies_make_the_published_network():
    shared = DiT(**TINY)
    params = randomized(shared)
    blocks = dict(params["transformer_blocks.*"])
    blocks["norm1.emb"] = jax.tree.map(lambda a: np.stack([a, a]), params["emb"])
    own = {k: v for k, v in params.items() if k != "emb"} | {"transformer_blocks.*": blocks}
    x, noise = np.ones(X.shape, np.float32), np.array([1.0, 500.0], np.float32)
    cond = {"label": np.array([1, 4])}
    want = jax.jit(networks.as_apply(shared))(params, x, noise, cond)
    got = jax.jit(networks.as_apply(shared.clone(per_block_embeddings=True)))(own, x, noise, cond)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.slow
def test_options_of_the_loop_change_no_gradient():
    plain = DiT(**TINY)
    params = randomized(plain)
    x, noise, cond = np.ones(X.shape, np.float32), np.array([1.0, 500.0], np.float32), {"label": np.array([1, 4])}

    def gradient(module):
        return jax.jit(jax.grad(lambda p: networks.as_apply(module)(p, x, noise, cond).sum()))(params)

    want = gradient(plain)
    for options in ({"remat": "dots"}, {"remat": "full"}, {"unroll": 2}):
        got = gradient(plain.clone(**options))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
