"""DDPM++, NCSN++ and EDM's ADM: published sizes, the filters, the conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from jaxdiff import networks
from jaxdiff.networks import DhariwalUNet, SongUNet, layers
from jaxdiff.networks.song_layers import one_hot, resample

TINY = {"resolution": 8, "model_channels": 8, "widths": (8, 16), "num_blocks": 1, "attention": (4,)}
LABEL = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}


def shapes(module, size=8, cond=None):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond or {}), jax.random.key(0))


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.slow
def test_published_parameter_counts():
    assert count(shapes(networks.ddpmpp_cifar10(augment_dim=9), 32)) == 55_733_891
    # The reference counts its 128 frequencies among the buffers.
    assert count(shapes(networks.ncsnpp_cifar10(augment_dim=9), 32)) == 56_397_827 + 128
    adm = {
        "resolution": 64,
        "model_channels": 192,
        "widths": (192, 384, 576, 768),
        "num_blocks": 3,
        "attention": (32, 16, 8),
    }
    assert count(shapes(DhariwalUNet(**adm, num_classes=1000), 64, LABEL)) == 295_899_267


def test_names_are_those_of_the_checkpoints():
    song = set(shapes(SongUNet(**TINY, embedding="fourier", encoder="residual", num_classes=5), cond=LABEL))
    assert song == {
        "map_noise", "map_label", "map_layer0", "map_layer1", "enc.8x8_conv", "enc.8x8_block0", "enc.4x4_down",
        "enc.4x4_aux_residual", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0", "dec.4x4_block1",
        "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1", "dec.8x8_aux_norm", "dec.8x8_aux_conv",
    }  # fmt: skip
    adm = shapes(DhariwalUNet(**TINY, head_dim=8))
    assert {"out_norm", "out_conv"} <= set(adm)
    assert adm["dec.4x4_block0"]["qkv"]["kernel"].shape == (1, 1, 16, 48)
    assert adm["enc.8x8_block0"]["affine"]["kernel"].shape == (32, 16)


def test_filters():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6, 3)), jnp.float32)
    np.testing.assert_allclose(resample(x, (1, 1), "down"), layers.downsample(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(resample(x, (1, 1), "up"), layers.upsample(x), rtol=1e-6)
    assert resample(x, (1, 3, 3, 1), None) is x
    line = jnp.array([0.0, 0, 8, 0]).reshape(1, 4, 1)
    np.testing.assert_allclose(resample(line, (1, 3, 3, 1), "up").ravel(), [0, 0, 0, 2, 6, 6, 2, 0])
    np.testing.assert_allclose(resample(line, (1, 3, 3, 1), "down").ravel(), [1, 3])


@pytest.mark.slow
def test_up_is_the_transpose_of_down():
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((1, 8, 4, 2), (1, 4, 2, 2)))
    for resample_filter in ((1, 3, 3, 1), (1, 2, 4, 3, 2, 1)):
        left, right = (
            (resample(x, resample_filter, "down") * y).sum(),
            (x * resample(y, resample_filter, "up")).sum() / 4,
        )
        np.testing.assert_allclose(left, right, rtol=1e-4)


def test_the_null_class_is_zero_and_no_class_is_nan():
    got = np.asarray(one_hot(jnp.array([0, 2, 3, 4, -1]), 3, jnp.float32))
    np.testing.assert_array_equal(got[:3], [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert np.isnan(got[3:]).all()


@pytest.mark.slow
def test_no_augmentation_is_zero_and_remat_changes_nothing():
    module = SongUNet(**TINY, augment_dim=3, dropout=0.5)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    params = random_weights(lambda key: networks.init(module, key, x), 0)
    noise, none = jnp.array([-1.0, 0.5]), {"augment": jnp.zeros((2, 3))}
    apply, remat, half = (
        jax.jit(networks.as_apply(module.clone(**changes)))
        for changes in ({}, {"remat": "full"}, {"dtype": jnp.bfloat16})
    )
    want = apply(params, x, noise)
    np.testing.assert_array_equal(apply(params, x, noise, none), want)
    other = apply(params, x, noise, {"augment": jnp.ones((2, 3))})
    assert np.abs(other - want).max() > 1e-3
    np.testing.assert_allclose(remat(params, x, noise), want, rtol=1e-4, atol=1e-5)
    dropped = apply(params, x, noise, key=jax.random.key(1))
    assert np.abs(dropped - want).max() > 1e-3
    half = half(params, x, noise)
    assert half.dtype == jnp.float32 and np.abs(half - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": "wide"}, "encoder must be one of standard, residual, skip, got 'wide'"),
        ({"embedding": "none"}, "embedding must be one of positional, fourier"),
        ({"attention": (16,)}, r"attention names sizes out of \[8, 4\], got \(16,\)"),
        (
            {"resample_filter": (1.0, 2.0, 1.0)},
            r"resample_filter must be an even number of them, got \(1.0, 2.0, 1.0\)",
        ),
    ],
)
def test_unknown_options(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes(SongUNet(**TINY | changes))


def test_heads_that_do_not_fit_are_not_dropped():
    with pytest.raises(ValueError, match=r"head_dim must divide the widths with attention, got 64 for \[16\]"):
        shapes(DhariwalUNet(**TINY, head_dim=64))


def test_bad_input():
    with pytest.raises(ValueError, match="unknown condition 'label'"):
        shapes(SongUNet(**TINY), cond=LABEL)
    with pytest.raises(ValueError, match="multiple of 2"):
        shapes(SongUNet(**TINY), size=7)
