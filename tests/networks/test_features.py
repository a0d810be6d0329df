"""Features of inner layers, and the critics that take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import MLP, ConvCritic, FeatureCritic, MLPCritic, UNet, as_apply, as_features

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


CRITICS = {
    "points": (MLPCritic(width=8, num_blocks=1, num_classes=3), jnp.ones((2, 2)), (2,)),
    "images": (ConvCritic(channels=(4, 8), num_classes=3), jnp.ones((2, 7, 6, 1)), (2,)),
    "features": (FeatureCritic(width=4, num_classes=3), {"a": jnp.ones((2, 3, 3, 5)), "b": jnp.ones((2, 7))}, (2, 2)),
}


@pytest.mark.parametrize(
    "name", [pytest.param("points"), *(pytest.param(n, marks=pytest.mark.slow) for n in ("images", "features"))]
)
def test_critics(name):
    """Logits of an example depend on it, its noise level and its label alone, and can be differentiated twice."""
    critic, x, shape = CRITICS[name]
    x = jax.tree.map(lambda a: a * jnp.arange(1.0, 3).reshape(-1, *(1,) * (a.ndim - 1)), x)
    cond = {"label": jnp.asarray([0, 2])}
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
    other = results(params, x, noise, {"label": jnp.asarray([0, 1])})[0]
    np.testing.assert_allclose(other[0], logits[0], rtol=1e-5)
    assert np.all(other[1] != logits[1])
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
