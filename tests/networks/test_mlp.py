import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import MLP

X = np.random.default_rng(0).standard_normal((3, 2), np.float32)
NOISE = np.array([0.1, 5.0, 900.0], np.float32)
LABEL = {"label": np.array([0, 1, 2], np.int32)}


@pytest.fixture(scope="module")
def network():
    """A class-conditional MLP with dropout, and parameters with no zeros left."""
    module = MLP(width=16, num_blocks=2, dropout=0.5, num_classes=2)
    params = networks.init(module, jax.random.key(0), X, LABEL)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape, np.float32), params)
    return jax.jit(networks.as_apply(module)), params, noisy


def test_starts_at_zero(network):
    apply, params, _ = network
    y = apply(params, X, NOISE, LABEL)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.zeros_like(X))


def test_depends_on_each_point_s_own_input_alone(network):
    apply, _, params = network
    y = apply(params, X, NOISE, LABEL)
    one = apply(params, X[1:2], NOISE[1:2], {"label": LABEL["label"][1:2]})
    np.testing.assert_allclose(one[0], y[1], rtol=1e-4, atol=1e-5)
    for other in (
        apply(params, X + 1, NOISE, LABEL),
        apply(params, X, NOISE + 1, LABEL),
        apply(params, X, NOISE, {"label": LABEL["label"][[1, 2, 0]]}),
    ):
        assert (np.abs(other - y).max(1) > 1e-4).all()


def test_dropout_with_a_key_only(network):
    apply, _, params = network
    first, again, other = (apply(params, X, NOISE, LABEL, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(apply(params, X, NOISE, LABEL), apply(params, X, NOISE, LABEL))


@pytest.mark.slow
def test_in_bfloat16(network):
    apply, _, params = network
    half = MLP(width=16, num_blocks=2, num_classes=2, dtype=jnp.bfloat16)
    want, got = apply(params, X, NOISE, LABEL), networks.as_apply(half)(params, X, NOISE, LABEL)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_wrong_inputs_are_refused():
    def refused(module, x, cond, match):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(lambda: module.init(jax.random.key(0), x, NOISE, cond))

    refused(MLP(), X[None], {}, r"x must be \[B, D\], got shape \(1, 3, 2\)")
    refused(MLP(), X, LABEL, "unknown condition 'label'")
    refused(MLP(num_classes=2), X, {}, "'label', which is missing")
