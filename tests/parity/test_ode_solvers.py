"""Parity with diffusers' k-diffusion and PNDM families and its DDIM inversion, step by step on the same grid and noise.

Departures of ours, each on purpose:
- eta and s_noise of the ancestral solvers are arguments; diffusers' have eta = 1 and s_noise = 1.
- The middles of DPM2 are told to the network as the level's own time. diffusers interpolates a time in its table, from
  sigmas in float32; both networks here look at sigma.
- PNDM ends at clean data (set_alpha_to_one=True), where diffusers' default ends at its t = 0. Its Runge-Kutta steps
  look halfway in time, which need be no integer; diffusers' at t - (T // N) // 2, and its steps are T // N long,
  whatever the list of times: only "leading" spacing and even steps are compared. Their v_prediction turns a mean of v
  into eps, with the x of the step's beginning: only epsilon is compared.
- At pure noise (alpha = 0) iPNDM's first step here goes by the network's x0. diffusers' divides 0 by 1e-8 and loses it,
  so the comparison starts below. It has order 4 alone there, 1 to 4 here.
- DDIM's inversion may iterate (`iterations`); diffusers' is the first iterate. Its v_prediction mixes the level of x
  with the network's; only epsilon is compared. Its alpha at the clean end is 1 here.
- LMS's integrals are exact here, and by quadrature to 1e-4 there, of which for these polynomials nothing is seen.

All run in float64 (1e-8) after their float32 tables have been replaced, but for Euler ancestral and flow-matching Heun,
which cast x to float32 (1e-5).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import (  # noqa: E402
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
)

import jaxdiff as jd  # noqa: E402
from jaxdiff import Level  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")
EDM = jd.processes.EDM()


def path_of_sigmas(solver, sigmas):
    return path_of_ours(solver, jd.parameterize.eps, EDM(jnp.asarray(sigmas, jnp.float64)), sigma_apply)


def through(scheduler, at, ends):
    """x after those calls of a diffusers' run that end a step; call i is evaluated at sigma at[i]."""
    x, path = torch.from_numpy(start()), []
    assert len(scheduler.timesteps) == len(at)
    for i, (t, sigma) in enumerate(zip(scheduler.timesteps, at, strict=True)):
        x = scheduler.step(denoise_as_eps(x, float(sigma)), t, x).prev_sample
        if i in ends:
            path.append(x.numpy())
    return np.stack(path)


def twice(a):
    """A list as diffusers' two-stage schedulers lay it out: each entry but the first stands twice, the last thrice."""
    a = torch.as_tensor(a)
    return torch.cat([a[:1], a[1:].repeat_interleave(2), a[-1:]])


# k-diffusion's


def test_euler_ancestral(monkeypatch):
    inject(monkeypatch, "scheduling_euler_ancestral_discrete", 12)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(T, 1e-4, 0.02)
    scheduler.set_timesteps(12)
    scheduler.is_scale_input_called = True
    sigmas = scheduler.sigmas.numpy()
    out = path_of_sigmas(jd.solvers.euler_ancestral(), sigmas)
    np.testing.assert_allclose(out, through(scheduler, sigmas[:-1], range(12)), rtol=1e-5, atol=1e-5)


def test_dpm_2():
    scheduler = diffusers.KDPM2DiscreteScheduler(T, 1e-4, 0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.numpy().astype(np.float64)[:-1:2]
    mids = np.append(np.sqrt(sigmas[:-2] * sigmas[1:-1]), 0)  # at i between i and i + 1; none before sigma = 0
    scheduler.sigmas, scheduler.sigmas_interpol = twice(sigmas), twice(np.append(np.nan, mids))
    at = np.ravel(np.stack([sigmas[:-1], mids], 1))[:-1]
    out = path_of_sigmas(jd.solvers.dpm_2(), sigmas)
    np.testing.assert_allclose(out, through(scheduler, at, {*range(1, 23, 2), 22}), rtol=1e-8, atol=1e-8)


def test_dpm_2_ancestral(monkeypatch):
    inject(monkeypatch, "scheduling_k_dpm_2_ancestral_discrete", 12)
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(T, 1e-4, 0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.numpy().astype(np.float64)[:-1:2]
    cur, nxt = sigmas[:-1], sigmas[1:]
    up = np.append(np.sqrt(nxt**2 * (cur**2 - nxt**2) / cur**2), 0)
    down = np.append(np.sqrt(nxt**2 - up[:-1] ** 2), 0)
    mids = np.sqrt(sigmas * down)
    scheduler.sigmas, scheduler.sigmas_interpol = twice(sigmas), twice(mids)
    scheduler.sigmas_up, scheduler.sigmas_down = twice(up), twice(down)
    at = np.ravel(np.stack([cur, mids[:-1]], 1))[:-1]
    out = path_of_sigmas(jd.solvers.dpm_2_ancestral(), sigmas)
    np.testing.assert_allclose(out, through(scheduler, at, {*range(1, 23, 2), 22}), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order):
    scheduler = diffusers.LMSDiscreteScheduler(T, 1e-4, 0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.is_scale_input_called = True
    x, expected = torch.from_numpy(start()), []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(denoise_as_eps(x, float(sigma)), t, x, order=order).prev_sample
        expected.append(x.numpy())
    out = path_of_sigmas(jd.solvers.lms(order), scheduler.sigmas.numpy())
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(shift):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(T, shift=shift)
    scheduler.set_timesteps(10)
    sigmas = np.append(scheduler.sigmas.numpy().astype(np.float64)[:-1:2], 0)
    x, expected = torch.from_numpy(start()), []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(None, x, t), t, x).prev_sample
        if i % 2 or i == len(scheduler.timesteps) - 1:
            expected.append(x.numpy())
    prediction = jd.parameterize.time_scaled(jd.parameterize.velocity)
    out = path_of_ours(jd.solvers.heun(), prediction, jd.processes.Flow()(sigmas))
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-5, atol=1e-5)


# Pseudo numerical methods


@pytest.mark.parametrize("name", ["pndm", "plms"])
def test_pndm_and_plms(name):
    skip = name == "plms"
    scheduler = in_float64(diffusers.PNDMScheduler(T, skip_prk_steps=skip, set_alpha_to_one=True))
    scheduler.set_timesteps(10)
    path = path_of(scheduler)
    # After each step: a Runge-Kutta step has four calls, PLMS's first one two.
    ends = [*range(1, 11)] if skip else [3, 7, 11, *range(12, 19)]
    assert len(path) == ends[-1] + 1
    solver = jd.solvers.plms() if skip else jd.solvers.pndm(TABLE)
    prediction = jd.parameterize.zero_based(jd.parameterize.eps)
    out = path_of_ours(solver, prediction, jd.grids.ddpm(TABLE, 10, "leading"))
    np.testing.assert_allclose(out, path[ends], rtol=1e-8, atol=1e-8)


def test_ipndm():
    scheduler = diffusers.IPNDMScheduler(T)
    scheduler.set_timesteps(10)
    angle = np.linspace(0.98, 0, 11) * np.pi / 2
    levels = Level(jnp.asarray(np.linspace(0.98, 0, 11)), jnp.cos(angle), jnp.sin(angle))
    scheduler.betas, scheduler.alphas = torch.from_numpy(np.sin(angle)), torch.from_numpy(np.cos(angle))
    scheduler.timesteps = torch.from_numpy(np.linspace(0.98, 0, 11)[:-1])
    out = path_of_ours(jd.solvers.ipndm(), jd.parameterize.v, levels)
    np.testing.assert_allclose(out, path_of(scheduler), rtol=1e-8, atol=1e-8)


# Inversion


def test_ddim_inverse():
    scheduler = in_float64(diffusers.DDIMInverseScheduler(T, clip_sample=False))
    scheduler.set_timesteps(10)
    denoise = jd.denoiser(apply, None, jd.parameterize.zero_based(jd.parameterize.eps))
    levels = jd.grids.ddpm(TABLE, 10, "leading")
    out = jax.jit(lambda x: jd.invert(denoise, levels, x))(jnp.asarray(start()))
    np.testing.assert_allclose(out, path_of(scheduler)[-1], rtol=1e-8, atol=1e-8)
