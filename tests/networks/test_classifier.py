import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.networks.classifier import Classifier

SMALL = Classifier(3, channels=(4, 8), features=16)


def draw(shape=(2, 12, 12, 1), seed=0):
    x = jax.random.normal(jax.random.key(seed), shape)
    return x, jax.jit(SMALL.init)(jax.random.key(1), x)["params"]


@jax.jit
def apply(params, x):
    return SMALL.apply({"params": params}, x)


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (3, 13, 9, 3)])
def test_shapes_and_types(shape):
    x, params = draw(shape)
    logits, features = apply(params, x)
    assert logits.shape == (shape[0], 3) and features.shape == (shape[0], 16)
    assert logits.dtype == features.dtype == jnp.float32


def test_logits_are_a_linear_map_of_the_features():
    x, params = draw()
    logits, features = apply(params, x)
    want = features @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)


def test_an_image_is_judged_on_its_own():
    x, params = draw((4, 12, 12, 1))
    both, alone = (apply(params, images) for images in (x, x[1:2]))
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_allclose(a[1:2], b, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    x, params = draw()
    run = lambda key: SMALL.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(key)})[0]  # noqa: E731
    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(apply(params, x)[0], apply(params, x)[0])


def test_it_can_learn_labels_by_heart():
    x, params = draw((12, 12, 12, 1))
    label = jnp.arange(12) % 3
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, opt):
        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(apply(p, x)[0], label).mean()

        updates, opt = optimizer.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    opt = optimizer.init(params)
    for _ in range(40):
        with jax.numpy_dtype_promotion("standard"):  # inside optax
            params, opt = step(params, opt)
    assert (apply(params, x)[0].argmax(1) == label).all()


def test_anything_but_images_is_refused():
    with pytest.raises(ValueError, match=r"B, H, W, C"):
        SMALL.init(jax.random.key(0), jnp.zeros((12, 12)))
