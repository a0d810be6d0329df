"""Conditions and outputs that all networks share, and the order of the layers in EDM's U-Nets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import MLP, stages
from jaxdiff.networks.apply import check_cond, cond_shapes, init, split_output

X, NOISE = jnp.zeros((2, 4, 6, 3)), jnp.zeros(2)
ALL = {
    "num_classes": 5, "context_dim": 7, "mask": True, "pooled_dim": 8, "guidance": True, "concat_channels": 1,
    "concat_noise": True, "augment_dim": 9,
}  # fmt: skip
COND = {
    "label": np.zeros(2, int), "tokens": np.zeros((2, 11, 7)), "mask": np.zeros((2, 11), bool),
    "vector": np.zeros((2, 8)), "guidance": np.zeros(2), "concat": np.zeros((2, 4, 6, 1)), "concat_noise": np.zeros(2),
    "augment": np.zeros((2, 9)),
}  # fmt: skip


def test_conditions_of_the_configured_shapes_are_returned():
    assert check_cond(X, NOISE, COND, cond_shapes(X, COND, **ALL)) == COND
    assert check_cond(X, NOISE, None, cond_shapes(X, None)) == {}


def test_mask_and_augment_are_optional_and_all_others_are_not():
    for name in COND:
        rest = {other: value for other, value in COND.items() if other != name}
        shapes = cond_shapes(X, rest, **ALL)
        if name in ("mask", "augment"):
            assert check_cond(X, NOISE, rest, shapes) == rest
        elif name != "tokens":  # without which the mask has no length to match
            with pytest.raises(ValueError, match=f"configured for the condition '{name}', which is missing"):
                check_cond(X, NOISE, rest, shapes)


@pytest.mark.parametrize("name", COND)
def test_what_is_off_or_misshapen_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown condition '{name}'; this network is configured for: none"):
        check_cond(X, NOISE, {name: COND[name]}, cond_shapes(X, {name: COND[name]}))
    wrong = COND | {name: np.zeros((2, 1, 1, 1, 1))}
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        check_cond(X, NOISE, wrong, cond_shapes(X, wrong, **ALL))


def test_a_mask_is_as_long_as_the_tokens_and_noise_as_the_batch():
    wrong = COND | {"mask": np.zeros((2, 10), bool)}
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 11\), got \(2, 10\)"):
        check_cond(X, NOISE, wrong, cond_shapes(X, wrong, **ALL))
    with pytest.raises(ValueError, match=r"noise must have shape \(2,\), got \(3,\)"):
        check_cond(X, jnp.zeros(3), {}, {})


def test_a_learned_variance_is_the_second_half_of_the_channels():
    y = jnp.asarray([[1.0, 2.0, -1.0, 1.0]])
    f, frac = split_output(y, True)
    np.testing.assert_array_equal(f, [[1.0, 2.0]])
    np.testing.assert_array_equal(frac, [[0.0, 1.0]])
    assert split_output(y, False) is y


def test_layers_are_named_by_size_and_every_output_of_the_encoder_is_taken_once():
    net = types.SimpleNamespace(resolution=8, widths=(16, 32), num_blocks=1, attention=(4,))
    down, up = list(stages.encoder(net, 2)), list(stages.decoder(net, 2))
    assert [s.name for s in down] == ["enc.8x8_conv", "enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0"]
    assert [s.name for s in up] == [
        "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0", "dec.4x4_block1",
        "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1",
    ]  # fmt: skip
    assert [s.attend for s in down] == [False, False, False, True]
    assert [s.attend for s in up] == [True, False, True, True, False, False, False]
    assert [s.width for s in up] == [32, 32, 32, 32, None, 16, 16]
    assert [s.direction for s in (*down, *up) if s.direction] == ["down", "up"]
    assert sum(s.block is not None for s in up) == len(down)
    assert next(stages.encoder(net, 3)).name == "enc.8x8x8_conv"


def test_a_network_takes_a_typed_key():
    for key in (jax.random.PRNGKey(0), 0, None):
        with pytest.raises(ValueError, match=r"expected a key of jax\.random\.key\(seed\)"):
            init(MLP(width=4, num_blocks=1), key, jnp.zeros((1, 2)))
