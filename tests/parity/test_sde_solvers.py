"""Parity with diffusers' schedulers: consistency sampling, and VE's predictor-corrector.

Departures of ours, each on purpose:
- ScoreSdeVeScheduler corrects before it predicts, we after: the same steps but for a corrector at the very first level,
  where x has its law. Its last step, to sigma = 0, still adds noise to its mean; ours does not. It takes norms over the
  batch, we of each example: here the batch is of one.
- CMStochasticIterativeScheduler renoises to sqrt(sigma^2 - sigma_min^2), as Song et al. 2023's algorithm 1 does for
  functions that end at sigma_min; ours renoises to sigma, for functions that end at clean data. A grid of those smaller
  sigmas makes the two equal.
"""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import KEY, TABLE, T, in_float64, inject, network, start  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff import Level  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")


def run(denoise, solver, levels, x):
    return np.asarray(jax.jit(lambda x: jd.sample_path(denoise, solver, levels, x, KEY)[1])(jnp.asarray(x)))


def test_latent_consistency(monkeypatch):
    inject(monkeypatch, "scheduling_lcm", 5)
    scheduler = in_float64(diffusers.LCMScheduler(T, clip_sample=False))
    scheduler.set_timesteps(5)
    x, expected = torch.from_numpy(start()), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(None, x, t), t, x).prev_sample
        expected.append(x.numpy())

    eps = jd.denoiser(
        lambda p, x, noise, c: network(p, x, noise[:, None]), None, jd.parameterize.zero_based(jd.parameterize.eps)
    )

    def consistency_function(x, level):  # the boundary condition of Luo et al. 2023 for times that count from 0
        scaled = 10 * (level.t - 1)
        return 0.25 / (scaled**2 + 0.25) * x + scaled / jnp.sqrt(scaled**2 + 0.25) * eps(x, level)

    levels = TABLE(np.append(scheduler.timesteps.numpy() + 1, 0))
    levels = levels._replace(t=levels.t.astype(float))
    out = run(consistency_function, jd.solvers.consistency(), levels, start())
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)  # their scalings are of float32


def test_consistency(monkeypatch):
    inject(monkeypatch, "scheduling_consistency_models", 4)
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(4)
    scheduler.sigmas, scheduler.is_scale_input_called = scheduler.sigmas.double(), True
    low, sigma = scheduler.config.sigma_min, scheduler.sigmas.numpy().copy()
    sigma[-1] = low  # the end, which they clamp to sigma_min
    x, expected = torch.from_numpy(80 * start()), []
    for t, s in zip(scheduler.timesteps, sigma, strict=False):
        x = scheduler.step(0.1 * x / s, t, x).prev_sample
        expected.append(x.numpy())

    def consistency_function(x, level):
        s = jnp.sqrt(level.sigma**2 + low**2)
        skip = 0.25 / ((s - low) ** 2 + 0.25)
        return skip * x + (s - low) * 0.5 / jnp.sqrt(s**2 + 0.25) * 0.1 * x / s

    smaller = np.sqrt(sigma**2 - low**2)
    out = run(
        consistency_function, jd.solvers.consistency(), Level(smaller, np.ones_like(smaller), smaller), 80 * start()
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)  # their sigmas are of float32


def test_predictor_corrector_of_ve(monkeypatch):
    """Two corrector steps a level; of the scheduler's float32 sigmas the denoiser is told those in float64."""
    n, z = 6, np.random.default_rng(1).normal(size=(18, 1, 6))
    drawn = iter(z)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_sde_ve.randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(drawn))
    )
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=n, snr=0.2, sigma_min=0.05, sigma_max=20.0)
    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    sigma = np.append(scheduler.discrete_sigmas.numpy()[::-1].astype(np.float64), 0)
    scheduler.discrete_sigmas = scheduler.discrete_sigmas.double()
    denoise = lambda x, s: x / (1 + s**2) + 0.1  # noqa: E731
    score = lambda x, s: (denoise(x, s) - x) / s**2  # noqa: E731
    x, expected = torch.from_numpy(20 * start()[:1]), []
    for i in range(n):
        for _ in range(2 if i else 0):
            x = scheduler.step_correct(score(x, sigma[i]), x).prev_sample
        if i:
            expected.append(x.numpy())
        answer = scheduler.step_pred(score(x, sigma[i]), (n - 1 - i) / (n - 1) + 1e-4, x)
        x = answer.prev_sample
    expected.append(answer.prev_sample_mean.numpy())

    # Step i draws z[3 i] for its predictor and the next two for its corrector, which folds its key once more.
    monkeypatch.setattr(jax.random, "fold_in", lambda key, i: 8 * key + jnp.asarray(i, key.dtype) + 1)
    monkeypatch.setattr(import_module("jaxdiff.sample"), "check_key", lambda *args: None)
    place = lambda key: jnp.where(key < 64, 3 * (key // 8 - 1), 3 * (key // 64 - 1) + key % 64 - 16)  # noqa: E731
    monkeypatch.setattr(jd.noise, "_normal", lambda key, shape, dtype: jnp.asarray(z)[place(key)])
    solver = jd.solvers.predictor_corrector(steps=2, snr=0.2)
    levels = Level(sigma, np.ones_like(sigma), sigma)
    trace = jax.jit(
        lambda x: jd.sample_path(lambda x, level: denoise(x, level.sigma), solver, levels, x, jnp.int32(0))[1]
    )
    np.testing.assert_allclose(trace(jnp.asarray(20 * start()[:1])), expected, rtol=1e-7, atol=1e-7)
