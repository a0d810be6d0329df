"""Parity with diffusers' guidance, in PyTorch: the same predictions guide to the same prediction.

Departures of ours, each on purpose:
- diffusers guides whatever the network predicts; ours guides x0_hat. That is the same wherever the rule is linear, and
  `rescale` names the prediction. APG is defined on x0_hat, so their function is given it.
- Their optimized scale divides by |u|^2 + 1e-8, ours by |u|^2.
- `sample_max_value` is 1 by default there, which makes dynamic thresholding static; here there is no limit.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import Level, guidance

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
X, COND, UNCOND = RNG.normal(size=(3, 4, 3, 5, 5))
AT = Level(*map(np.float64, (0.3, 0.8, 0.6)))


def network(output, prediction):
    return jd.denoiser(lambda params, x, noise, cond: jnp.asarray(output), None, prediction)


def pair(prediction):
    return [network(output, prediction) for output in (COND, UNCOND)]


def predicted(denoise, prediction):
    return jd.parameterize.target(prediction, denoise(jnp.asarray(X), AT), jnp.asarray(X), AT)


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity", "x0"])
def test_rescale(prediction):
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    prediction = getattr(jd.parameterize, prediction)
    cond, uncond = pair(prediction)
    guided = torch.from_numpy(UNCOND + 7.5 * (COND - UNCOND))
    expected = rescale_noise_cfg(guided, torch.from_numpy(COND), guidance_rescale=0.7)
    out = predicted(guidance.rescale(lambda c: guidance.cfg(c, uncond, 7.5), cond, 0.7, prediction), prediction)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("radius", [None, 12.0])
def test_apg(radius):
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    expected = normalized_guidance(
        *map(torch.from_numpy, (COND, UNCOND)), 5.0, None, 0.3, radius or 0.0, use_original_formulation=True
    )
    lengths = np.linalg.norm((COND - UNCOND).reshape(4, -1), axis=1)
    assert np.any(lengths > 12) and np.any(lengths < 12)
    # Their "original formulation" is ours with scale - 1: cond + scale (...).
    out = guidance.apg(*pair(jd.parameterize.x0), 6.0, eta=0.3, norm_threshold=radius)(jnp.asarray(X), AT)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


def test_cfg_zero_star():
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    guider = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=1)
    prediction = jd.parameterize.velocity
    for step, zero_init in ((0, 0.4), (1, 1.0)):  # sigma / (alpha + sigma) = 0.43
        guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0))
        expected = guider.forward(torch.from_numpy(COND), torch.from_numpy(UNCOND)).pred
        out = predicted(guidance.cfg_zero_star(*pair(prediction), 3.0, zero_init=zero_init), prediction)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)  # their s is float32


@pytest.mark.parametrize("limit", [1.0, 1.5, 100.0])
def test_dynamic_thresholding(limit):
    scheduler = diffusers.DDIMScheduler(dynamic_thresholding_ratio=0.9, sample_max_value=limit)
    expected = scheduler._threshold_sample(torch.from_numpy(2 * X))
    out = guidance.dynamic_threshold(lambda x, level: 2 * x, 0.9, max_scale=limit)(jnp.asarray(X), AT)
    np.testing.assert_allclose(out, expected, rtol=1e-10)
