import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.classifier import Classifier

SMALL = Classifier(3, channels=(4, 8), features=16)


@pytest.fixture(scope="module")
def network():
    """(images, parameters, apply)"""
    x = jax.random.normal(jax.random.key(0), (4, 12, 12, 1))
    params = jax.jit(SMALL.init)(jax.random.key(1), x)["params"]
    return x, params, jax.jit(lambda params, x: SMALL.apply({"params": params}, x))


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (3, 13, 9, 3)])
def test_shapes_and_types(shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    (logits, features), params = jax.eval_shape(Classifier(7).init_with_output, jax.random.key(0), x)
    assert logits.shape == (shape[0], 7) and features.shape == (shape[0], 128)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, features, params))} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_logits_are_a_linear_map_of_the_features(network):
    x, params, apply = network
    logits, features = apply(params, x)
    want = features @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)


def test_an_image_is_judged_on_its_own(network):
    x, params, apply = network
    changed = x.at[1:].set(5.0)
    for a, b in zip(apply(params, x), apply(params, changed), strict=True):
        np.testing.assert_allclose(a[:1], b[:1], rtol=1e-5, atol=1e-6)
        assert not np.allclose(a[1:], b[1:])


def test_dropout_acts_in_training_only(network):
    x, params, apply = network

    @jax.jit
    def run(key):
        return SMALL.apply({"params": params}, x, train=True, rngs={"dropout": key})[0]

    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.allclose(a, b)
    assert not np.allclose(a, apply(params, x)[0])


def test_anything_but_images_is_refused():
    with pytest.raises(ValueError, match=r"B, H, W, C"):
        SMALL.init(jax.random.key(0), jnp.zeros((12, 12)))
