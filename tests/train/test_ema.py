import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import ema


def test_constant():
    assert float(ema.constant(0.25)(jnp.int32(7))) == 0.25


@pytest.mark.parametrize("step", [0, 1, 89, 90, 10**6])
def test_warmup(step):
    expected = min(0.9, (1 + step) / (10 + step))
    np.testing.assert_allclose(ema.warmup(0.9)(jnp.int32(step)), expected, rtol=1e-6)
    expected = min(0.9, (1 + step) / (2 + step))
    np.testing.assert_allclose(ema.warmup(0.9, offset=2.0)(jnp.int32(step)), expected, rtol=1e-6)


def test_update_against_a_weighted_sum():
    """The average after n updates is d^n e_0 + (1 - d) sum_k d^(n-1-k) p_k."""
    values = np.random.default_rng(0).normal(size=(6, 5))
    average = jnp.asarray(values[0], jnp.float32)
    for value in values[1:]:
        average = ema.update({"w": average}, {"w": jnp.asarray(value, jnp.float32)}, jnp.float32(0.8))["w"]
    expected = 0.8**5 * values[0] + 0.2 * sum(0.8 ** (4 - k) * values[1 + k] for k in range(5))
    np.testing.assert_allclose(average, expected, atol=1e-6)


def test_update_is_float32_and_exact_where_nothing_moves():
    new = jnp.full((3,), 0.1, jnp.bfloat16)
    old = new.astype(jnp.float32)
    moved = ema.update(old, new, jnp.float32(0.9999))
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, old)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range(decay):
    for make in (ema.constant, ema.warmup):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            make(decay)


def test_offset_out_of_range():
    with pytest.raises(ValueError, match="offset"):
        ema.warmup(0.9, offset=1.0)
