import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.attention import Attention, attend


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def randomized(module, *args):
    """Parameters with nothing left at zero."""
    params = jax.jit(module.init)(jax.random.key(9), *args)["params"]
    return {"params": jax.tree.map(lambda a: a + 0.3 * normal(a.size, *a.shape), params)}


def check_attend(dtype, tolerance):
    q, k, v = (normal(seed, 2, length, 6).astype(dtype) for seed, length in enumerate((5, 7, 7)))
    mask = np.arange(7) < np.array([[7], [4]])
    num_heads = [a.reshape(2, -1, 2, 3) for a in (q, k, v)]
    got = jax.jit(attend)(*num_heads, mask=mask).reshape(q.shape)
    assert got.dtype == dtype
    for head in (slice(0, 3), slice(3, 6)):
        logits = np.einsum("bnc,blc->bnl", q[..., head], k[..., head]) / np.sqrt(3)
        weights = np.exp(logits) * mask[:, None]
        want = weights / weights.sum(-1, keepdims=True) @ v[..., head]
        np.testing.assert_allclose(got[..., head], want, rtol=tolerance, atol=tolerance)


def test_attend_is_softmax_of_scaled_products_head_by_head():
    check_attend(np.float32, 1e-5)


def test_attend_computes_half_precision_in_single():
    check_attend(np.float16, 1e-2)


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
def test_half_precision_has_gradients_near_single_s(dtype):
    qkv = [normal(seed, 2, 5, 2, 8) for seed in range(3)]
    loss = lambda q, k, v: jnp.square(attend(q, k, v).astype(jnp.float32)).sum()  # noqa: E731
    got = jax.grad(loss, (0, 1, 2))(*(jnp.asarray(a, dtype) for a in qkv))
    for a, b in zip(got, jax.grad(loss, (0, 1, 2))(*qkv), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05)


def test_bias_and_causality_are_the_formula_s():
    q, k, v = (normal(seed, 2, 5, 2, 3) for seed in range(3))
    bias = normal(3, 2, 5, 5)
    logits = np.einsum("bnhd,blhd->bhnl", q, k) * 0.7 + bias
    weights = np.exp(logits) * np.tri(5)
    want = np.einsum("bhnl,blhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attend(q, k, v, bias=bias[None], causal=True, scale=0.7), want, rtol=1e-5, atol=1e-5)


def test_attend_keeps_double_precision(x64):
    check_attend(np.float64, 1e-12)


def test_masked_tokens_are_as_good_as_absent():
    x, tokens = normal(0, 2, 4, 4, 8), normal(1, 2, 6, 5)
    module = Attention(head_dim=4, groups=4)
    params = randomized(module, x, tokens)
    mask = np.array([[True] * 3 + [False] * 3] * 2)
    apply = jax.jit(module.apply)
    got = apply(params, x, tokens, mask)
    np.testing.assert_allclose(got, apply(params, x, tokens[:, :3]), rtol=1e-5, atol=1e-6)
    # Exactly hidden: neither other values nor NaN behind the mask change a bit.
    for other in (7.0, np.nan, np.inf):
        changed = np.where(mask[..., None], tokens, np.float32(other))
        np.testing.assert_array_equal(apply(params, x, changed, mask), got)
    assert not np.allclose(apply(params, x, tokens), got)


def test_nothing_visible_adds_the_output_bias_alone():
    x, tokens = normal(0, 2, 4, 8), normal(1, 2, 6, 5)
    module = Attention(groups=4)
    params = randomized(module, x, tokens)
    mask = np.array([[False] * 6, [True] * 6])
    y = jax.jit(module.apply)(params, x, tokens, mask)
    np.testing.assert_allclose(y[0] - x[0], np.tile(params["params"]["to_out.0"]["bias"], (4, 1)), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda t: module.apply(params, x, t, mask).sum()))(tokens)
    assert np.isfinite(gradient).all() and not gradient[0].any() and gradient[1].any()


def test_self_attention_commutes_with_permuted_positions():
    x = normal(0, 2, 6, 8)
    module = Attention(head_dim=2, groups=4)
    params = randomized(module, x)
    order = np.array([3, 1, 5, 0, 2, 4])
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(apply(params, x[:, order]), apply(params, x)[:, order], rtol=1e-4, atol=1e-5)


def test_starts_as_the_identity():
    x = normal(0, 2, 6, 8)
    module = Attention(groups=4)
    np.testing.assert_array_equal(jax.jit(module.apply)(jax.jit(module.init)(jax.random.key(0), x), x), x)


def test_the_identity_map_passes_the_values_through():
    x = normal(0, 2, 6, 8)
    module = Attention(head_dim=4, groups=4)
    params = randomized(module, x)
    perturbed = module.clone(identity=True)
    tree = jax.eval_shape(perturbed.init, jax.random.key(9), x)
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
    p = jax.tree.map(np.float64, params["params"])
    groups = x.astype(np.float64).reshape(2, 6, 4, 2)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    h = (centred / np.sqrt(np.mean(centred**2, axis=(1, 3), keepdims=True) + 1e-5)).reshape(2, 6, 8)
    h = h * p["group_norm"]["scale"] + p["group_norm"]["bias"]
    for name in ("to_v", "to_out.0"):
        h = h @ p[name]["kernel"] + p[name]["bias"]
    np.testing.assert_allclose(jax.jit(perturbed.apply)(params, x), x + h, rtol=1e-4, atol=1e-5)
    # Cross-attention stays as it is.
    tokens = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)
    across = jax.eval_shape(module.init, jax.random.key(9), x, tokens)
    programs = [str(jax.make_jaxpr(m.apply)(across, x, tokens)) for m in (module, perturbed)]
    assert programs[0] == programs[1] and "exp" in programs[0]


def test_head_dim_must_divide():
    with pytest.raises(ValueError, match="got 3 for 8 channels"):
        Attention(head_dim=3, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 8)))
