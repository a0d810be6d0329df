"""Classifier-free guidance: its limits, in two calls and in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import Level, guidance


def level(alpha, sigma, shape=()):
    return Level(*(jnp.full(shape, a, jnp.float32) for a in (0.3, alpha, sigma)))


def network(params, x, noise, cond, *, key=None):
    shift = cond["label"].astype(x.dtype)[:, None] + cond["vector"].sum(1, keepdims=True)
    return jnp.tanh(params * x + shift) + noise[:, None]


def batch(n=4):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
    cond = {"label": jnp.arange(n), "vector": jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)}
    null = {"label": jnp.full(1, 10), "vector": jnp.zeros((1, 2))}
    return x, cond, null


def denoisers(x, cond, null):
    null = jax.tree.map(lambda c, n: jnp.broadcast_to(n, c.shape), cond, null)
    return [jd.denoiser(network, jnp.float32(0.4), jd.parameterize.v, c) for c in (cond, null)]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, -1.0])
def test_cfg_is_unconditional_plus_scale_times_the_difference(scale):
    x, cond, null = batch()
    conditional, unconditional = denoisers(x, cond, null)
    at = level(0.8, 0.6)
    c, u = conditional(x, at), unconditional(x, at)
    out = guidance.cfg(conditional, unconditional, scale)(x, at)
    np.testing.assert_allclose(out, u + scale * (c - u), rtol=1e-5, atol=1e-6)
    if scale in (0.0, 1.0):
        np.testing.assert_allclose(out, (u, c)[int(scale)], rtol=1e-6, atol=1e-6)
    # The paper's eq. 6 on eps, with w = scale - 1.
    eps = [jd.levels.from_x0(x0, x, at).eps for x0 in (c, u, out)]
    np.testing.assert_allclose(eps[2], scale * eps[0] - (scale - 1) * eps[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (4,)], ids=["one level", "a level per example"])
def test_one_doubled_batch_is_two_calls(shape):
    x, cond, null = batch()
    at = level(0.8, 0.6, shape)
    two = guidance.cfg(*denoisers(x, cond, null), 2.5)
    one = guidance.cfg_batched(network, jnp.float32(0.4), jd.parameterize.v, cond=cond, null_cond=null, scale=2.5)
    np.testing.assert_allclose(one(x, at), two(x, at), rtol=1e-5, atol=1e-6)


def test_a_scale_per_example():
    x, cond, null = batch()
    at, scales = level(0.8, 0.6), jnp.array([0.0, 1.0, 2.0, 5.0])
    c, u = (d(x, at) for d in denoisers(x, cond, null))
    expected = np.asarray(u) + np.array([0, 1, 2, 5])[:, None] * np.asarray(c - u)
    together = guidance.cfg(*denoisers(x, cond, null), scales)(x, at)
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)
    one = guidance.cfg_batched(network, jnp.float32(0.4), jd.parameterize.v, cond=cond, null_cond=null, scale=scales)
    np.testing.assert_allclose(one(x, at), expected, rtol=1e-5, atol=1e-6)


def test_a_scale_that_follows_the_level():
    x, cond, null = batch()
    pair, scale = denoisers(x, cond, null), lambda level: 1 + 4 * level.sigma
    one, each = level(0.8, 0.6), Level(jnp.zeros(4), jnp.full(4, 0.8), jnp.array([0.0, 0.1, 0.6, 2.0]))
    batched = guidance.cfg_batched(network, jnp.float32(0.4), jd.parameterize.v, cond=cond, null_cond=null, scale=scale)
    for at, value in ((one, 3.4), (each, jnp.array([1.0, 1.4, 3.4, 9.0]))):
        expected = guidance.cfg(*pair, value)(x, at)
        for guided in (guidance.cfg(*pair, scale), batched):
            np.testing.assert_allclose(guided(x, at), expected, rtol=1e-5, atol=1e-5)
    # A constant is a function, too.
    np.testing.assert_allclose(guidance.cfg(*pair, lambda level: 1.0)(x, one), pair[0](x, one), rtol=1e-6)


def test_a_learned_variance_is_the_conditional_models():
    x, cond, null = batch()
    at = level(0.8, 0.6)
    conditional, unconditional = denoisers(x, cond, null)
    plain = guidance.cfg(conditional, unconditional, 2.0)(x, at)
    with_frac = [lambda x, level, d=d, f=f: (d(x, level), f * x) for d, f in ((conditional, 0.1), (unconditional, 0.9))]
    x0, frac = guidance.cfg(*with_frac, 2.0)(x, at)
    np.testing.assert_allclose(x0, plain, rtol=1e-6)
    np.testing.assert_allclose(frac, 0.1 * x, rtol=1e-6)
    # Models that do not both know a variance may guide each other.
    x0, frac = guidance.cfg(with_frac[0], unconditional, 2.0)(x, at)
    np.testing.assert_allclose(x0, plain, rtol=1e-6)
    np.testing.assert_allclose(guidance.cfg(conditional, with_frac[1], 2.0)(x, at), plain, rtol=1e-6)
    x0, frac = guidance.classifier(with_frac[0], lambda x, level: jnp.sum(x, axis=1), 2.0)(x, at)
    np.testing.assert_allclose(x0, conditional(x, at) + 2 * 0.36 / 0.8, rtol=1e-5)
    np.testing.assert_allclose(frac, 0.1 * x, rtol=1e-6)
    pair = guidance.cfg_batched(
        lambda p, x, noise, cond: (network(p, x, noise, cond), cond["label"].astype(x.dtype)[:, None] + x),
        jnp.float32(0.4), jd.parameterize.v, cond=cond, null_cond=null, scale=2.0,
    )(x, at)  # fmt: skip
    np.testing.assert_allclose(pair[0], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pair[1], jnp.arange(4.0)[:, None] + x, rtol=1e-6)


def test_the_condition_is_dropped_at_its_rate_leaf_by_leaf_together():
    n, rate = 20_000, 0.3
    cond = {"label": jnp.arange(n, dtype=jnp.int32) % 10, "vector": jnp.ones((n, 4, 2))}
    null = {"label": jnp.full(1, 10), "vector": jnp.zeros((1, 4, 2))}
    out = jax.jit(guidance.drop_condition)(jax.random.key(0), cond, null, rate)
    assert out["label"].dtype == jnp.int32 and out["vector"].dtype == jnp.float32
    dropped = np.asarray(out["label"] == 10)
    assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(out["vector"], np.where(dropped[:, None, None], 0, np.ones((n, 4, 2))))
    np.testing.assert_array_equal(out["label"][~dropped], cond["label"][~dropped])
    for rate, label in ((0.0, cond["label"]), (1.0, jnp.full(n, 10))):
        np.testing.assert_array_equal(guidance.drop_condition(jax.random.key(0), cond, null, rate)["label"], label)


def test_what_has_no_null_is_kept():
    cond = {"label": jnp.arange(4), "hint": jnp.ones((4, 2))}
    out = guidance.drop_condition(jax.random.key(0), cond, {"label": jnp.full(1, 9)}, 1.0)
    assert out.keys() == cond.keys() and out["label"].tolist() == [9] * 4
    np.testing.assert_array_equal(out["hint"], cond["hint"])


def test_nothing_is_dropped_from_no_condition():
    assert guidance.drop_condition(jax.random.key(0), {}, {}, 0.1) == {}


def test_conditions_of_other_structure_and_untyped_keys_are_refused():
    cond = {"label": jnp.zeros(4, jnp.int32)}
    with pytest.raises(ValueError, match="same structure"):
        guidance.drop_condition(jax.random.key(0), cond, {}, 0.1)
    with pytest.raises(ValueError, match=r"jax\.random\.key\(seed\)"):
        guidance.drop_condition(jax.random.PRNGKey(0), cond, cond, 0.1)
    with pytest.raises(ValueError):
        guidance.cfg_batched(network, 0, jd.parameterize.v, cond=cond, null_cond={"vector": jnp.zeros(4)}, scale=1.0)


def test_guidance_without_a_condition_is_refused():
    denoise = lambda x, level: x  # noqa: E731
    with pytest.raises(ValueError, match=r"uncond must be a denoiser .*, got None; .* autoguidance"):
        guidance.cfg(denoise, None, 2.0)
    with pytest.raises(ValueError, match=r"guidance needs a condition and a null condition, got {} and {}"):
        guidance.cfg_batched(network, 0, jd.parameterize.v, cond={}, null_cond={}, scale=2.0)
    with pytest.raises(ValueError, match="log_prob must be a function"):
        guidance.classifier(denoise, jnp.ones(3))


def test_scales_that_are_no_numbers_are_refused():
    denoise, x, at = lambda x, level: x, jnp.ones((4, 2)), level(0.8, 0.6)
    for scale in (np.nan, np.inf, np.array([1.0, np.nan]), None):
        with pytest.raises(ValueError, match="scale must be a finite number, got"):
            guidance.cfg(denoise, denoise, scale)
    for scale in (jnp.ones(3), jnp.ones((4, 2, 1)), lambda level: jnp.ones(2)):
        with pytest.raises(ValueError, match="one for each of 4 examples, got shape"):
            guidance.cfg(denoise, denoise, scale)(x, at)
