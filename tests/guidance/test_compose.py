"""Conditions composed: exact products and negations on Gaussians and on the mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, gaussian

import jaxdiff as jd
from jaxdiff import Level, guidance

X = np.random.default_rng(0).normal(size=(10, 2))
SCALES = [(1.0, 1.0, 0.0), (0.7, -0.5, 2.0), (-1.0, 0.0, 0.0)]  # product, mixed, negation


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scales", SCALES)
def test_on_the_mixture_the_score_gains_each_classifiers_gradient(scales):
    """grad log p(x) + sum_k w_k grad log p(k | x): a negative weight moves away from its component."""
    at = Level(*map(jnp.float64, (0.3, 0.8, 0.6)))
    conds = [CLUSTERS.component(k).denoise for k in range(3)]
    x = jnp.asarray(X)

    def log_prob(x):
        classes = CLUSTERS.log_component(x, at) * jnp.asarray(scales)[None]
        return jnp.sum(CLUSTERS.log_density(x, at) + jnp.sum(classes, axis=1))

    out = guidance.compose(CLUSTERS.denoise, conds, scales)(x, at)
    score = jd.levels.score(jd.levels.from_x0(out, x, at), at)
    np.testing.assert_allclose(score, jax.grad(log_prob)(x), rtol=1e-8, atol=1e-9)
    # The same by classifier guidance, one classifier after the other.
    denoise = CLUSTERS.denoise
    for k, w in enumerate(scales):
        denoise = guidance.classifier(denoise, lambda x, level, k=k: CLUSTERS.log_component(x, level)[:, k], w)
    np.testing.assert_allclose(out, denoise(x, at), rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_product_of_gaussians_is_a_gaussian():
    """p (c1 / p)^w1 (c2 / p)^w2 of noised Gaussians: precisions and precision-weighted means add; w2 = 0 is `cfg`."""
    alpha, sigma = 0.8, 0.6
    at, x = Level(*map(jnp.float64, (0.3, alpha, sigma))), jnp.asarray(X)
    means = np.array([[0.0, 0.1], [0.7, -0.4], [-0.5, 0.9]])
    covs = np.array([[[2.0, 0.2], [0.2, 1.5]], [[0.5, 0.3], [0.3, 0.4]], [[0.6, -0.1], [-0.1, 0.3]]])
    uncond, *conds = (gaussian(m, c).denoise for m, c in zip(means, covs, strict=True))
    for w1, w2 in ((1.0, 1.0), (2.0, -0.3), (3.0, 0.0)):
        precisions = np.linalg.inv(alpha**2 * covs + sigma**2 * np.eye(2))
        weights = np.array([1 - w1 - w2, w1, w2])
        precision = np.einsum("k,kij->ij", weights, precisions)
        shift = np.einsum("k,kij,kj->i", weights, precisions, alpha * means)
        score = shift - X @ precision
        out = guidance.compose(uncond, conds, [w1, w2])(x, at)
        np.testing.assert_allclose(jd.levels.score(jd.levels.from_x0(out, x, at), at), score, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(guidance.cfg(conds[0], uncond, w1)(x, at), out, rtol=1e-12)


def test_scales_may_be_one_traced_array():
    at, x = Level(*map(jnp.float32, (0.3, 0.8, 0.6))), jnp.asarray(X[:4], jnp.float32)
    u, *conds = (lambda x, level, k=k: jnp.sin(k * x) for k in range(3))
    run = jax.jit(lambda scales: guidance.compose(u, conds, scales)(x, at))
    for scales in (np.array([1.0, -2.0]), np.arange(8.0).reshape(2, 4) - 3):
        expected = sum(np.reshape(w, (-1, 1)) * np.sin((k + 1) * X[:4]) for k, w in enumerate(scales))
        np.testing.assert_allclose(run(jnp.asarray(scales, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_no_conditions_and_another_number_of_scales_are_refused():
    u = CLUSTERS.denoise
    for conds, scales in (([], []), ([u], []), ([u], [1.0, 2.0])):
        with pytest.raises(ValueError, match="at least one condition and a scale for each"):
            guidance.compose(u, conds, scales)
    with pytest.raises(ValueError, match=r"scales\[1\] must be a finite number, got nan"):
        guidance.compose(u, [u, u], [1.0, np.nan])
    with pytest.raises(ValueError, match=r"conds\[0\] must be a denoiser"):
        guidance.compose(u, [None], [1.0])
