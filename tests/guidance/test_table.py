"""What every guidance function holds: finite ends, one level or one an example, a variance passed on, one compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance

GRID = Level(*(jnp.array(field, jnp.float32) for field in ((1, 0.5, 0.2, 0), (0, 0.5, 0.8, 1), (1, 0.5, 0.2, 0))))
ALPHA, SIGMA = jnp.array([0.0, 0.5, 0.8, 1.0, 1.0]), jnp.array([1.0, 0.5, 0.2, 0.0, 0.03])

# (cond, uncond, w) -> denoiser, with w in [0, 1].
TABLE = {
    "apg": lambda c, u, w: guidance.apg(c, u, 1 + 2 * w, eta=w, norm_threshold=0.3 * w),
    "autoguidance": lambda c, u, w: guidance.autoguidance(c, u, 1 + w),
    "cfg": lambda c, u, w: guidance.cfg(c, u, 4 * w),
    "cfg_pp": lambda c, u, w: guidance.cfg_pp(c, u, w, GRID),
    "cfg_zero_star": lambda c, u, w: guidance.cfg_zero_star(c, u, 4 * w, zero_init=w),
    "classifier": lambda c, u, w: guidance.classifier(c, lambda x, level: jnp.sum(x**2, axis=1), w),
    "clip": lambda c, u, w: guidance.clip(c, -w, w),
    "compose": lambda c, u, w: guidance.compose(u, [c, u], [w, lambda level: level.sigma]),
    "dynamic_threshold": lambda c, u, w: guidance.dynamic_threshold(c, w, max_scale=1 + w),
    "interval": lambda c, u, w: guidance.interval(guidance.cfg(c, u, 3.0), c, w / 2, 10 * w),
    "perturbed_attention": lambda c, u, w: guidance.perturbed_attention(c, u, w),
    "rescale": lambda c, u, w: guidance.rescale(lambda c: guidance.cfg(c, u, 3.0), c, w, jd.parameterize.v),
}


def test_the_table_has_every_function():
    assert set(TABLE) == set(guidance.__all__) - {
        "apg_momentum",
        "cfg_batched",
        "classifier_gradient",
        "drop_condition",
    }


@pytest.mark.parametrize("name", TABLE)
def test_what_every_guidance_holds(name):
    traces = []

    def cond(x, level):
        return 3 * rational(x, level), 0.1 * x

    def uncond(x, level):
        return 1.5 * rational(x, level) - 0.2 * level.expand_to(x).alpha * x

    def of(w, x, alpha, sigma):
        return TABLE[name](cond, uncond, w)(x, Level(sigma, alpha, sigma))

    @jax.jit
    def run(w, x):
        traces.append(name)
        x0, frac = of(w, x, ALPHA, SIGMA)
        alone = [of(w, x[i : i + 1], ALPHA[i], SIGMA[i])[0] for i in range(len(x))]
        gradients = jax.grad(lambda *args: jnp.sum(of(*args)[0] ** 2), argnums=(0, 1, 2, 3))(w, x, ALPHA, SIGMA)
        return x0, frac, jnp.concatenate(alone), gradients

    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    answers = {}
    for w in (0.7, 0.3):
        x0, frac, alone, gradients = answers[w] = run(jnp.float32(w), x)
        assert x0.shape == x.shape and x0.dtype == x.dtype and np.all(np.isfinite(x0))
        np.testing.assert_allclose(x0, alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(frac, 0.1 * x, rtol=1e-6)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert not np.allclose(answers[0.7][0], answers[0.3][0], atol=1e-3)
    assert len(traces) == 1  # w is traced: another one compiles nothing
