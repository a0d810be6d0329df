"""Classifier guidance: exactly right with the exact classifier of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS

import jaxdiff as jd
from jaxdiff import Level, guidance, inverse


def test_the_course_numbers():
    # score [0.5, -0.3, 0.2] + 2 * classifier gradient [0.1, 0.4, -0.2] = [0.7, 0.5, -0.2]
    at, x = Level(*map(jnp.float32, (0.3, 0.8, 0.6))), jnp.array([[0.2, -0.1, 0.4]])
    score, gradient = jnp.array([[0.5, -0.3, 0.2]]), jnp.array([[0.1, 0.4, -0.2]])
    denoise = lambda x, level: (x + level.sigma**2 * score) / level.alpha  # noqa: E731
    guided = guidance.classifier(denoise, lambda x, level: jnp.sum(gradient * x, axis=1), 2.0)
    ends = jd.levels.from_x0(guided(x, at), x, at)
    np.testing.assert_allclose(jd.levels.score(ends, at), [[0.7, 0.5, -0.2]], rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (0.1, 0.99), (1.0, 3.0)])
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


def test_a_number_for_all_examples_is_no_log_probability():
    """A mean over the batch would guide an example less in a larger batch."""
    at, x = Level(*map(jnp.float32, (0.3, 0.8, 0.6))), jnp.ones((2, 3))
    for wrong, shape in ((lambda x, *_: jnp.mean(x), r"\[\]"), (lambda x, *_: x, r"\[2, 3\]")):
        for name, run in (
            ("log_prob", lambda f: guidance.classifier_gradient(lambda x, level: f(x))(x, at)),
            ("loss", lambda f: inverse.guide(lambda x, level: x, lambda x0: f(x0))(x, at)),
            ("loss", lambda f: inverse.langevin(lambda x0: f(x0), 1.0)(jax.random.key(0), x, jnp.float32(1), at)),
        ):
            with pytest.raises(
                ValueError, match=rf"{name} must return one number for each example, \[2\], got {shape}"
            ):
                run(wrong)


@pytest.mark.slow
def test_pure_noise_has_no_classifier_guidance_and_finite_gradients():
    x = jnp.ones((2, 3))
    log_prob = lambda x, level: jnp.sum(x, axis=1)  # noqa: E731
    value, grad = jax.value_and_grad(
        lambda alpha: guidance.classifier(lambda x, level: x, log_prob)(
            x, Level(jnp.float32(1), alpha, jnp.float32(1))
        ).sum()
    )(jnp.float32(0))
    assert value == 6 and np.isfinite(grad)
