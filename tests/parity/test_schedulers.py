"""Parity with diffusers' schedulers, in PyTorch: the same network, grid and noise give the same steps.

Departures of ours, each on purpose:
- Times count from 1 to T, with 0 for clean data; diffusers' from 0 to T - 1, with -1 for clean data.
- DDIM goes to the grid's next time. diffusers' goes to t - T // N whatever the spacing, so that with "linspace", or
  where N does not divide T, its steps are not between neighbours of its own list.
- DDPM adds no noise in the step to clean data. diffusers' adds none only if that step starts at its t = 0: with
  "trailing" its large variance adds sqrt(1 - abar_t) of noise to the finished sample.
- "linspace" with one step is [T] here, [1] there.
- Churn raises x before the network sees it (Karras et al. 2022, algorithm 2). diffusers' EDMEulerScheduler and
  EulerDiscreteScheduler ask the network first and then add the noise to x alone, so only their churn of 0 is compared.
- EDM's start has standard deviation sigma_max, as NVlabs'; diffusers' sqrt(sigma_max^2 + 1).
- DPM-Solver++(2M) lowers its order in the last step to sigma = 0, where it must; diffusers' also lowers it where
  N < 15 and the end is sigma_min, silently. Its "linspace" and "leading" are lists of their own, not those of its DDIM.
- Shifted flow times are shifted once. diffusers' FlowMatchEulerScheduler shifts its default list twice.

DDPM, DDIM and Heun run in float64 (1e-8) after their float32 tables have been replaced; the others cast every step to
float32 (1e-5).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import (  # noqa: E402
    KEY,
    ROWS,
    TABLE,
    T,
    apply,
    denoise_as_eps,
    in_float64,
    inject,
    network,
    path_of,
    path_of_ours,
    sigma_apply,
    start,
)  # fmt: skip

import jaxdiff as jd  # noqa: E402
from jaxdiff import Level  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def injected(monkeypatch):
    """Make step i of both sides draw noises(n)[i]."""
    return partial(inject, monkeypatch, "scheduling_ddpm")


# DDPM


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("n", [10, 7, 27, 31, 48, 1000])  # 27, 31 and 48 have halves whose rounding is float64's
def test_the_times_are_diffusers_times_plus_one(spacing, n):
    for kind in (diffusers.DDPMScheduler, diffusers.DDIMScheduler):
        scheduler = kind(T, timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        np.testing.assert_array_equal(jd.grids.ddpm(TABLE, n, spacing).t[:-1], scheduler.timesteps.numpy() + 1)


@pytest.mark.parametrize("spacing", ["leading", pytest.param("linspace", marks=pytest.mark.slow), "trailing"])
@pytest.mark.parametrize("theirs", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(theirs, spacing, injected):
    injected(7)
    ours = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}[theirs]
    scheduler = in_float64(
        diffusers.DDPMScheduler(T, clip_sample=False, variance_type=theirs, timestep_spacing=spacing)
    )
    scheduler.set_timesteps(7)

    def model(x, t):
        out = network(None, x, t)
        # Learned: the second half of the channels, in [-1, 1].
        return torch.cat([out, torch.tanh(x)], 1) if theirs == "learned_range" else out

    def both(params, x, noise, cond):
        out = network(None, x, noise[:, None])
        return (out, (jnp.tanh(x) + 1) / 2) if theirs == "learned_range" else out

    expected = path_of(scheduler, model)
    levels = jd.grids.ddpm(TABLE, 7, spacing)
    out = path_of_ours(jd.solvers.ddpm(ours), jd.parameterize.zero_based(jd.parameterize.eps), levels, both)
    if spacing == "trailing" and theirs != "fixed_small":  # they add noise at the end, see above
        assert not np.allclose(out[-1], expected[-1], atol=1e-2)
        out, expected = out[:-1], expected[:-1]
    np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-8)


# DDIM


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
@pytest.mark.parametrize("prediction", ROWS)
def test_ddim(prediction, eta, spacing, injected):
    z = injected(10)
    scheduler = in_float64(
        diffusers.DDIMScheduler(T, clip_sample=False, prediction_type=prediction, timestep_spacing=spacing)
    )
    scheduler.set_timesteps(10)
    x, expected = torch.from_numpy(start()), []
    for t, noise in zip(scheduler.timesteps, z, strict=True):
        noise = torch.from_numpy(noise) if eta else None
        x = scheduler.step(network(None, x, t), t, x, eta=eta, variance_noise=noise).prev_sample
        expected.append(x.numpy())
    prediction = jd.parameterize.zero_based(ROWS[prediction])
    out = path_of_ours(jd.solvers.ddim(eta), prediction, jd.grids.ddpm(TABLE, 10, spacing))
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("spacing", "n"), [("linspace", 10), ("trailing", 7)])
def test_ddim_steps_where_theirs_leave_their_own_list(spacing, n):
    scheduler = in_float64(diffusers.DDIMScheduler(T, clip_sample=False, timestep_spacing=spacing))
    scheduler.set_timesteps(n)
    denoise = jd.denoiser(apply, None, jd.parameterize.zero_based(jd.parameterize.eps))
    x = torch.from_numpy(start())
    step = jax.jit(lambda x, cur, nxt: jd.solvers.ddim().step(denoise, KEY, x, (), cur, nxt)[0])
    for t in scheduler.timesteps:
        after = scheduler.step(network(None, x, t), t, x).prev_sample
        cur, nxt = TABLE(int(t) + 1), TABLE(max(int(t) - T // n, -1) + 1)
        np.testing.assert_allclose(step(jnp.asarray(x.numpy()), cur, nxt), after, rtol=1e-8, atol=1e-8)
        x = after


# Sigmas: EDM and the table's Karras grid


def karras_of(scheduler, sigmas, n):
    levels = jd.grids.karras(jd.processes.EDM(), n, sigma_min=float(sigmas[-2]), sigma_max=float(sigmas[0]))
    np.testing.assert_allclose(levels.sigma, sigmas, rtol=2e-5, atol=0)
    return jd.processes.EDM()(jnp.asarray(sigmas, jnp.float64))


def test_euler_on_karras_sigmas():
    scheduler = diffusers.EulerDiscreteScheduler(T, 1e-4, 0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    sigma = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas, strict=False))
    scheduler.is_scale_input_called = True
    expected = path_of(scheduler, lambda x, t: denoise_as_eps(x, sigma[t.item()]))
    levels = karras_of(scheduler, scheduler.sigmas.numpy(), 12)
    out = path_of_ours(jd.solvers.euler(), jd.parameterize.eps, levels, sigma_apply)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_heun_on_karras_sigmas():
    scheduler = diffusers.HeunDiscreteScheduler(T, 1e-4, 0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = np.append(scheduler.sigmas.numpy()[::2], 0)  # all but the ends are listed twice
    at = [sigmas[0], *np.repeat(sigmas[1:-1], 2)]
    x, expected = torch.from_numpy(start()), []
    for i, (t, sigma) in enumerate(zip(scheduler.timesteps, at, strict=True)):
        x = scheduler.step(denoise_as_eps(x, sigma), t, x).prev_sample
        if i % 2:
            expected.append(x.numpy())
    expected.append(x.numpy())  # the last step is Euler's
    levels = karras_of(scheduler, sigmas, 12)
    out = path_of_ours(jd.solvers.heun(), jd.parameterize.eps, levels, sigma_apply)
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-8, atol=1e-8)


def test_edm_preconditioning_and_euler():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    x, expected = torch.from_numpy(80 * start()), []
    for t in scheduler.timesteps:
        F = network(None, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(F, t, x).prev_sample
        expected.append(x.numpy())
    levels = jd.grids.karras(jd.processes.EDM(), 18, sigma_min=0.002, sigma_max=80.0)
    denoise = jd.denoiser(apply, None, jd.parameterize.edm(0.5))
    x = jnp.asarray(80 * start())
    out = jax.jit(lambda x: jd.sample_path(denoise, jd.solvers.euler(), levels, x, KEY)[1])(x)
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-5, atol=1e-5)


# DPM-Solver++(2M)


@pytest.mark.parametrize("prediction", ROWS)
def test_dpmpp_2m(prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        T, 1e-4, 0.02, prediction_type=prediction, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(20)
    prediction = jd.parameterize.zero_based(ROWS[prediction])
    out = path_of_ours(jd.solvers.dpmpp_2m(), prediction, jd.grids.ddpm(TABLE, 20, "trailing"))
    np.testing.assert_allclose(out, path_of(scheduler), rtol=2e-5, atol=2e-5)


# Flow matching


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(T, shift=shift)
    t = np.linspace(1, 0, 11)
    scheduler.set_timesteps(sigmas=t[:-1])
    shifted = jd.processes.Shifted(jd.processes.Flow(), shift)(t)  # sigmas that are given are shifted once
    np.testing.assert_allclose(shifted.sigma, scheduler.sigmas, rtol=1e-6)
    levels = Level(shifted.sigma, shifted.alpha, shifted.sigma)
    prediction = jd.parameterize.time_scaled(jd.parameterize.velocity)
    out = path_of_ours(jd.solvers.euler(), prediction, levels)
    np.testing.assert_allclose(out, path_of(scheduler), rtol=1e-5, atol=1e-5)
