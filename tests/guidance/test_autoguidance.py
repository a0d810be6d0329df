"""Autoguidance and perturbed-attention guidance: limits, and a network's own perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, gaussian, rational

import jaxdiff as jd
from jaxdiff import Level, guidance, networks

AT = Level(*map(jnp.float32, (0.3, 0.8, 0.6)))
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)


def bad(x, level):
    return 0.5 * jnp.sin(x)


def test_autoguidance_leaves_the_bad_for_the_good():
    g, b = rational(X, AT), bad(X, AT)
    for scale, expected in ((0.0, b), (1.0, g), (3.0, b + 3 * (g - b))):
        out = guidance.autoguidance(rational, bad, scale)(X, AT)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_autoguidance_on_gaussians():
    # Four times the covariance: each denoiser in closed form, mean + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mean).
    mean, cov, w = np.array([0.7, -0.4]), np.array([[0.5, 0.3], [0.3, 0.4]]), 2.0
    alpha, sigma = 0.8, 0.6
    gain = [alpha * c @ np.linalg.inv(alpha**2 * c + sigma**2 * np.eye(2)) for c in (cov, 4 * cov)]
    good, wide = (mean + (np.asarray(X) - alpha * mean) @ g.T for g in gain)
    out = guidance.autoguidance(BLOB.denoise, gaussian(mean, 4 * cov).denoise, w)(X, AT)
    np.testing.assert_allclose(out, wide + w * (good - wide), rtol=1e-4, atol=1e-5)


def test_perturbed_attention_adds_the_difference():
    d, p = rational(X, AT), bad(X, AT)
    for scale, expected in ((0.0, d), (3.0, d + 3 * (d - p)), (lambda level: level.sigma, d + 0.6 * (d - p))):
        out = guidance.perturbed_attention(rational, bad, scale)(X, AT)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_unet_guides_itself_by_its_perturbed_attention():
    module = networks.UNet(widths=(8,), num_blocks=1, groups=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    tree = jax.eval_shape(lambda key: networks.init(module, key, x), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 4, a.dtype), tree)

    @jax.jit
    def run(params):
        models = (module, module.clone(identity_attention=("mid_block",)))
        own, other = (jd.denoiser(networks.as_apply(m), params, jd.parameterize.v) for m in models)
        return own(x, AT), other(x, AT), guidance.perturbed_attention(own, other, 2.0)(x, AT)

    own, other, guided = run(params)
    assert np.abs(own - other).max() > 1e-3
    np.testing.assert_allclose(guided, 3 * own - 2 * other, rtol=1e-4, atol=1e-4)
