"""The parts that token transformers share, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import tokens
from jaxdiff.networks.layers import space_to_depth


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_layer_norm():
    # A mean a thousand times the deviation costs E[x^2] - E[x]^2 all its digits.
    x = 1e3 + numbers(3, 8)
    y = x.astype(float)
    want = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(jax.jit(tokens.layer_norm)(x, 0.1), want, atol=2e-4)


def test_half_precision_is_normalized_in_single():
    x = jax.ShapeDtypeStruct((3, 5, 8), jnp.bfloat16)
    shift = jax.ShapeDtypeStruct((3, 1, 8), jnp.bfloat16)
    assert jax.eval_shape(tokens.layer_norm, x).dtype == jnp.float32
    assert jax.eval_shape(tokens.modulated_norm, x, shift, shift).dtype == jnp.bfloat16


def _modulated(x, shift, scale):
    return tokens.layer_norm(x, 1e-3) * (1 + scale) + shift


def test_derivatives_of_the_modulated_norm_are_those_of_its_formula(x64):
    """First, forwards and backwards, and second ones."""
    x, shift, scale = (numbers(*shape).astype(np.float64) for shape in ((2, 3, 8), (2, 1, 8), (2, 1, 8)))
    along = tuple(np.cos(a) for a in (x, shift, scale))

    def derivatives(norm):
        value = lambda *args: jnp.sin(norm(*args)).sum()  # noqa: E731
        slope = lambda *args: jax.jvp(value, args, along)[1]  # noqa: E731
        gradients = [jax.grad(f, argnums=(0, 1, 2)) for f in (value, slope)]
        return jax.jit(lambda *args: (value(*args), slope(*args), *(grad(*args) for grad in gradients)))(
            x, shift, scale
        )

    got, want = (derivatives(norm) for norm in (lambda *args: tokens.modulated_norm(*args, eps=1e-3), _modulated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)


def test_gradients_of_half_precision_are_those_of_single():
    x, shift, scale = (numbers(*shape).astype(jnp.bfloat16) for shape in ((2, 3, 64), (2, 1, 64), (2, 1, 64)))
    by = np.cos(np.arange(2 * 3 * 64, dtype=np.float32)).reshape(2, 3, 64)

    def gradients(norm, dtype):
        value = lambda *args: (norm(*args).astype(jnp.float32) * by).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*(a.astype(dtype) for a in (x + 2, shift, scale)))

    got = gradients(lambda *args: tokens.modulated_norm(*args, eps=1e-3), jnp.bfloat16)
    for made, want in zip(got, gradients(_modulated, jnp.float32), strict=True):
        assert made.dtype == jnp.bfloat16
        assert np.abs(made.astype(jnp.float32) - want).max() < 0.02 * np.abs(want).max()


def test_grid_table():
    table = np.asarray(tokens.grid_table(np.arange(3), 0.5 * np.arange(5), 8))
    assert table.shape == (3, 5, 8)
    row, column = 2, 0.5 * 4
    want = [f(place * w) for place in (column, row) for f in (np.sin, np.cos) for w in (1, 1e-2)]
    np.testing.assert_allclose(table[2, 4], want, atol=1e-6)


def test_odd_positions_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        tokens.grid_table(np.arange(3), np.arange(3), 6)


def test_rotations_keep_products_of_equal_distances():
    by = tokens.rope_table((4, 5), (4, 2))
    q, k = (np.broadcast_to(a, (1, 20, 1, 6)) for a in numbers(2, 1, 1, 1, 6))
    q, k = (np.asarray(jax.jit(tokens.apply_rope)(a, by)).reshape(4, 5, 6) for a in (q, k))
    first, second = q[0, 1] @ k[2, 3], q[1, 2] @ k[3, 4]
    assert abs(first - second) < 1e-5
    assert abs(first - q[0, 1] @ k[1, 3]) > 1e-3
    assert abs(first - q[0, 1] @ k[2, 2]) > 1e-3


def test_rotation_by_complex_numbers():
    by = tokens.rope_table((3,), (4,), period=100.0)
    x = numbers(1, 3, 2, 4)
    want = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * np.outer(np.arange(3), [1, 0.1]))[None, :, None]
    got = np.asarray(jax.jit(tokens.apply_rope)(x, by))
    np.testing.assert_allclose(got[..., ::2] + 1j * got[..., 1::2], want, atol=1e-6)


def test_packing_puts_the_channel_first():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    packed = tokens.pack(x, 2)
    assert packed.shape == (2, 2, 3, 12)
    for c in range(3):
        for i, j in np.ndindex(2, 2):
            assert packed[1, 1, 2, 4 * c + 2 * i + j] == x[1, 2 + i, 4 + j, c]
    assert not np.array_equal(packed, space_to_depth(x, 2))
    np.testing.assert_array_equal(tokens.unpack(packed, 2), x)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu(exact):
    feed = tokens.FeedForward(1, exact)
    one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    y = feed.apply({"params": {"net.0.proj": one, "net.2": one}}, jnp.full((1, 1), 2.0))
    want = 1 + (math.erf(2**0.5) if exact else math.tanh((2 / math.pi) ** 0.5 * (2 + 0.044715 * 8)))
    assert abs(y.item() - want) < 1e-6
