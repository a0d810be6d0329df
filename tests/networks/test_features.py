"""Features of inner layers, and the critics that take them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import (
    MLP,
    ConvCritic,
    DiT,
    FeatureCritic,
    MLPCritic,
    UNet,
    UViT,
    as_apply,
    as_features,
    dit,
    uvit,
)
from jaxdiff.networks.tokens import grid_table

KEY = jax.random.key(0)
SMALL = MLP(width=8, num_blocks=2)
NAMES = ["blocks.0.linear_1", "blocks.1.linear_2", "norm_out"]


def random_params(module, x, cond=None):
    """Parameters none of which is zero."""
    shapes = jax.eval_shape(lambda key: networks.init(module, key, x, cond), KEY)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)


@pytest.mark.slow
def test_features_are_the_inputs_of_what_comes_after():
    x, noise = jax.random.normal(KEY, (3, 2)), jnp.asarray([1.0, 20.0, 300.0])
    params = random_params(SMALL, x)
    features = as_features(SMALL, NAMES)
    found = jax.jit(features)(params, x, noise)
    assert set(found) == set(NAMES) and {h.shape for h in found.values()} == {(3, 8)}
    out = jax.nn.silu(found["norm_out"]) @ params["linear_out"]["kernel"] + params["linear_out"]["bias"][None]
    np.testing.assert_allclose(out, as_apply(SMALL)(params, x, noise), rtol=1e-5)
    y = jax.nn.silu(found["blocks.0.linear_1"]) @ params["blocks.0.linear_2"]["kernel"]
    only = as_features(SMALL, "blocks.0.linear_2")(params, x, noise)
    np.testing.assert_allclose(only["blocks.0.linear_2"], y + params["blocks.0.linear_2"]["bias"][None], rtol=1e-5)

    # A gradient reaches x; what comes after the last feature is not computed.
    early = as_features(SMALL, ["linear_in"])
    np.testing.assert_allclose(
        jax.grad(lambda x: early(params, x, noise)["linear_in"][1, 4])(x)[1], params["linear_in"]["kernel"][:, 4]
    )
    text = jax.jit(lambda x: early(params, x, noise)).lower(x).compile().as_text()
    assert text.count(" dot(") <= 1 and "exponential" not in text


@pytest.mark.slow
def test_layers_within_blocks_and_recomputed_blocks():
    x, noise = jax.random.normal(KEY, (1, 8, 8, 3)), jnp.ones(1)
    names, found = ["down_blocks.0.resnets.0", "down_blocks.0.resnets.0/conv2"], []
    for remat in ("none", "full"):
        unet = UNet(widths=(8,), num_blocks=1, groups=4, mid_blocks=0, mid_attention=False, remat=remat)
        params = random_params(unet, x)
        with pytest.raises(ValueError, match="the network has no layer middle; its layers are: conv_in, conv_norm_out"):
            jax.eval_shape(as_features(unet, ["conv_in", "middle"]), params, x, noise)
        found.append(jax.jit(as_features(unet, names))(params, x, noise))
    assert {h.shape for h in found[0].values()} == {(1, 8, 8, 8)}
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("unroll", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_blocks_in_a_loop(unroll):
    """Each block's features are what it makes of those before, on its own; a gradient reaches x through them."""
    network = DiT(width=8, layers=3, num_heads=2, unroll=unroll, remat="full" if unroll == 1 else "dots")
    x, noise = jax.random.normal(KEY, (2, 4, 6, 1)), jnp.asarray([1.0, 300.0])
    params, blocks = random_params(network, x), [f"transformer_blocks.{i}" for i in range(3)]
    names = ["pos_embed.proj", "emb", *blocks, "transformer_blocks.1/ff"]
    with pytest.raises(ValueError, match=r"no layer transformer_blocks\.3; .* transformer_blocks\.0, .*\.0/attn1"):
        jax.eval_shape(as_features(network, ["transformer_blocks.3", "emb"]), params, x, noise)

    @jax.jit
    def results(params, x):
        found, pull = jax.vjp(lambda x: as_features(network, names)(params, x, noise), x)
        first = found["pos_embed.proj"] + grid_table(np.arange(2), np.arange(3), 8)[None]
        inputs = dit._BlockInputs(None, None, found["emb"], None)
        block = jax.vmap(lambda params, h: dit.Block(2).apply({"params": params}, h, inputs)[0])
        before = jnp.stack([first.reshape(2, 6, 8), *(found[name] for name in blocks[:-1])])
        seen = {name: jnp.full_like(h, name == blocks[0]) for name, h in found.items()}
        return found, block(params["transformer_blocks.*"], before), pull(seen)[0]

    found, expected, slope = results(params, x)
    assert found.keys() == set(names) and found["transformer_blocks.1/ff"].shape == (2, 6, 8)
    np.testing.assert_allclose([found[name] for name in blocks], expected, rtol=1e-4, atol=1e-5)
    assert np.all(slope != 0)


@pytest.mark.slow
def test_blocks_in_loops_with_skips():
    network, block = (kind(num_heads=2, dtype=jnp.bfloat16) for kind in (partial(UViT, 8, 4), uvit.Block))
    x, noise = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.asarray([1.0, 300.0])
    params, names = random_params(network, x), [f"{half}_blocks.{i}" for half in ("in", "out") for i in range(2)]
    found = jax.jit(as_features(network, names))(params, x, noise)
    for half, skip in {"in": (), "out": (found["in_blocks.0"],)}.items():
        second = {"params": jax.tree.map(lambda a: a[1], params[f"{half}_blocks.*"])}
        expected, _ = block.apply(second, found[f"{half}_blocks.0"], None, *skip)
        result = found[f"{half}_blocks.1"]
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(result), np.float32(expected), rtol=0.1, atol=0.1)


CRITICS = {
    "points": (MLPCritic(width=8, num_blocks=1, num_classes=3, pooled_dim=4), jnp.ones((2, 2)), (2,)),
    "images": (ConvCritic(channels=(4, 8), num_classes=3), jnp.ones((2, 7, 6, 1)), (2,)),
    "features": (FeatureCritic(width=4, num_classes=3), {"a": jnp.ones((2, 3, 3, 5)), "b": jnp.ones((2, 7))}, (2, 2)),
}


@pytest.mark.parametrize(
    "name", [pytest.param("points"), *(pytest.param(n, marks=pytest.mark.slow) for n in ("images", "features"))]
)
def test_critics(name):
    """Logits of an example depend on it, its noise level and its condition alone, and can be differentiated twice."""
    critic, x, shape = CRITICS[name]
    x = jax.tree.map(lambda a: a * jnp.arange(1.0, 3).reshape(-1, *(1,) * (a.ndim - 1)), x)
    cond = {"label": jnp.asarray([0, 2])}
    others = {"label": jnp.asarray([0, 1])}
    if getattr(critic, "pooled_dim", None):
        cond["vector"] = jnp.eye(2, critic.pooled_dim)
        others["vector"] = cond["vector"].at[1, 3].set(1.0)
    params = random_params(critic, x, cond)

    @jax.jit
    def results(params, x, noise, cond):
        apply = as_apply(critic)
        D = lambda x: apply(params, x, noise, cond)  # noqa: E731
        penalty = lambda params: sum(  # noqa: E731
            jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(lambda x: jnp.sum(apply(params, x, noise, cond)))(x))
        )
        return D(x), jax.grad(penalty)(params)

    noise = jnp.asarray([1.0, 5.0])
    logits, slopes = results(params, x, noise, cond)
    assert logits.shape == shape and logits.dtype == jnp.float32
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(slopes)) and any(map(np.any, jax.tree.leaves(slopes)))
    second = jax.tree.map(lambda a: a.at[1].add(1.0), x)
    changed, _ = results(params, second, noise, cond)
    np.testing.assert_allclose(changed[0], logits[0], rtol=1e-5)
    assert np.all(changed[1] != logits[1])
    for entry, changed in others.items():
        other = results(params, x, noise, {**cond, entry: changed})[0]
        np.testing.assert_allclose(other[0], logits[0], rtol=1e-5)
        assert np.all(other[1] != logits[1]), entry
    assert np.all(results(params, x, noise + 3, cond)[0] != logits) == (name != "features")


def test_mistakes():
    with pytest.raises(ValueError, match="at least one layer"):
        as_features(SMALL, [])
    with pytest.raises(ValueError, match=r"x must be \[B, D\]"):
        networks.init(MLPCritic(), KEY, jnp.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"x must be \[B, \*spatial, C\]"):
        networks.init(ConvCritic(), KEY, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="condition 'label', which is missing"):
        networks.init(FeatureCritic(num_classes=2), KEY, {"a": jnp.zeros((1, 2))})
