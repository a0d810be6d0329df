"""The contrastive loss against closed forms, second implementations, and what equal pairs cost."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import image_text

B, D = 6, 5


def unit(seed, shape=(B, D)):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def value(a, b, scale):
    return image_text.info_nce(jnp.asarray(a), jnp.asarray(b), jnp.log(jnp.float32(scale)))


@pytest.mark.parametrize("scale", [1.0, 14.0, 500.0])
def test_equal_vectors_cost_log_b(scale):
    """Whatever the temperature: nothing is found, by the loss, though each pair is as near as it can be."""
    same = np.repeat(unit(0)[:1], B, axis=0)
    loss, metrics = value(same, same, scale)
    np.testing.assert_allclose(loss, math.log(B), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 1 / B, rtol=1e-6)


def test_the_loss_is_the_mean_cross_entropy_of_rows_and_columns():
    a, b, scale = unit(1).astype(np.float64), unit(2).astype(np.float64), 7.0
    total = 0.0
    for i in range(B):
        for u, v in ((a, b), (b, a)):
            logits = [scale * float(u[i] @ v[j]) for j in range(B)]
            total += math.log(sum(map(math.exp, logits))) - logits[i]
    loss, metrics = value(a, b, scale)
    np.testing.assert_allclose(loss, total / (2 * B), rtol=1e-5)
    np.testing.assert_allclose(metrics["scale"], scale, rtol=1e-6)
    similarity = a @ b.T
    found = np.mean(similarity.argmax(0) == np.arange(B)), np.mean(similarity.argmax(1) == np.arange(B))
    np.testing.assert_allclose(metrics["accuracy"], np.mean(found), rtol=1e-6)


@pytest.mark.slow
def test_its_gradients_are_the_closed_forms():
    """scale (p + q - 2 I) b / 2B, where p and q are the softmax over rows and columns; the scale's likewise."""
    a, b, scale = unit(1), unit(2), 7.0
    logits = scale * (a @ b.T).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    error = (p + q - 2 * np.eye(B)) / (2 * B)
    by_a, by_b, by_scale = jax.grad(lambda *args: image_text.info_nce(*args)[0], (0, 1, 2))(
        jnp.asarray(a), jnp.asarray(b), jnp.log(jnp.float32(scale))
    )
    np.testing.assert_allclose(by_a, scale * error @ b, atol=1e-5)
    np.testing.assert_allclose(by_b, scale * error.T @ a, atol=1e-5)
    np.testing.assert_allclose(by_scale, np.sum(error * logits), atol=1e-5)


def test_the_order_of_the_pairs_has_no_influence_and_the_partner_has():
    a, b = unit(3), unit(3) + 0.1 * unit(4)
    order = np.random.default_rng(0).permutation(B)
    np.testing.assert_allclose(value(a[order], b[order], 5.0)[0], value(a, b, 5.0)[0], rtol=1e-6)
    np.testing.assert_allclose(value(b, a, 5.0)[0], value(a, b, 5.0)[0], rtol=1e-6)
    assert value(a, np.roll(b, 1, axis=0), 5.0)[0] > value(a, b, 5.0)[0] + 1


def test_a_caption_that_occurs_twice_costs_log_two():
    """The targets are the pairs alone: perfect vectors of B - 1 things, of which one is there twice."""
    a = np.eye(B, dtype=np.float32)
    a[1] = a[0]
    loss, _ = value(a, a, 90.0)  # so large that all else costs nothing
    np.testing.assert_allclose(loss, 2 * math.log(2) / B, rtol=1e-5)


def test_the_scale_is_at_most_100():
    _, metrics = value(unit(0), unit(1), 1e6)
    np.testing.assert_allclose(metrics["scale"], 100.0, rtol=1e-6)
