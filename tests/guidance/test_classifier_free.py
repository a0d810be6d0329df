"""Guidance: its limits, and exactly right guidance on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import CLUSTERS

import jaxdiff as jd
from jaxdiff import Level, guidance

LEVELS = [(0.8, 0.6), (0.1, 0.99), (1.0, 3.0)]


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


def test_the_course_numbers():
    # score [0.5, -0.3, 0.2] + 2 * classifier gradient [0.1, 0.4, -0.2] = [0.7, 0.5, -0.2]
    at, x = level(0.8, 0.6), jnp.array([[0.2, -0.1, 0.4]])
    score, gradient = jnp.array([[0.5, -0.3, 0.2]]), jnp.array([[0.1, 0.4, -0.2]])
    denoise = lambda x, level: (x + level.sigma**2 * score) / level.alpha  # noqa: E731
    guided = guidance.classifier(denoise, lambda x, level: jnp.sum(gradient * x, axis=1), 2.0)
    ends = jd.levels.from_x0(guided(x, at), x, at)
    np.testing.assert_allclose(jd.levels.score(ends, at), [[0.7, 0.5, -0.2]], rtol=1e-5)


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
    one = guidance.cfg_batched(network, jnp.float32(0.4), jd.parameterize.v, cond=cond, null=null, scale=2.5)
    np.testing.assert_allclose(one(x, at), two(x, at), rtol=1e-5, atol=1e-6)


def test_a_scale_per_example():
    x, cond, null = batch()
    at, scales = level(0.8, 0.6), jnp.array([0.0, 1.0, 2.0, 5.0])
    c, u = (d(x, at) for d in denoisers(x, cond, null))
    expected = np.asarray(u) + np.array([0, 1, 2, 5])[:, None] * np.asarray(c - u)
    together = guidance.cfg(*denoisers(x, cond, null), scales)(x, at)
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)
    one = guidance.cfg_batched(network, jnp.float32(0.4), jd.parameterize.v, cond=cond, null=null, scale=scales)
    np.testing.assert_allclose(one(x, at), expected, rtol=1e-5, atol=1e-6)


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
        jnp.float32(0.4), jd.parameterize.v, cond=cond, null=null, scale=2.0,
    )(x, at)  # fmt: skip
    np.testing.assert_allclose(pair[0], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pair[1], jnp.arange(4.0)[:, None] + x, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_exact_classifier_guides_to_the_exact_class(alpha, sigma):
    """Bayes: grad log p(x | y) = grad log p(x) + grad log p(y | x), at every level."""
    at = Level(*map(jnp.float64, (0, alpha, sigma)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 2)))
    for k in range(3):
        log_prob = lambda x, level, k=k: CLUSTERS.log_component(x, level)[:, k]  # noqa: E731
        guided = guidance.classifier(CLUSTERS.denoise, log_prob)(x, at)
        np.testing.assert_allclose(guided, CLUSTERS.component(k).denoise(x, at), rtol=1e-8, atol=1e-9)


def test_classifier_guidance_takes_a_scale_and_a_level_per_example():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2)), jnp.float32)
    at = Level(jnp.zeros(2), jnp.array([0.8, 0.5]), jnp.array([0.6, 0.7]))
    guided = guidance.classifier(
        lambda x, level: jnp.zeros_like(x), lambda x, level: jnp.sum(x, axis=(1, 2)), jnp.array([1.0, 3.0])
    )(x, at)
    np.testing.assert_allclose(guided[:, 0, 0], [0.36 / 0.8, 3 * 0.49 / 0.5], rtol=1e-5)


def test_pure_noise_has_no_classifier_guidance_and_finite_gradients():
    x = jnp.ones((2, 3))
    log_prob = lambda x, level: jnp.sum(x, axis=1)  # noqa: E731
    value, grad = jax.value_and_grad(
        lambda alpha: guidance.classifier(lambda x, level: x, log_prob)(
            x, Level(jnp.float32(1), alpha, jnp.float32(1))
        ).sum()
    )(jnp.float32(0))
    assert value == 6 and np.isfinite(grad)


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


def test_nothing_is_dropped_from_no_condition():
    assert guidance.drop_condition(jax.random.key(0), {}, {}, 0.1) == {}


def test_conditions_of_other_structure_and_untyped_keys_are_refused():
    cond = {"label": jnp.zeros(4, jnp.int32)}
    with pytest.raises(ValueError, match="same structure"):
        guidance.drop_condition(jax.random.key(0), cond, {}, 0.1)
    with pytest.raises(ValueError, match=r"jax\.random\.key\(seed\)"):
        guidance.drop_condition(jax.random.PRNGKey(0), cond, cond, 0.1)
    with pytest.raises(ValueError):
        guidance.cfg_batched(network, 0, jd.parameterize.v, cond=cond, null={"vector": jnp.zeros(4)}, scale=1.0)
