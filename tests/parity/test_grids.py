"""Parity with the lists of sigmas and times of diffusers' schedulers.

Departures of ours, each on purpose:
- Times count from 1 to T, with 0 for clean data; diffusers' from 0 to T - 1.
- Quantiles of a Beta distribution are taken over time, as Lee et al. 2024 do; diffusers takes them over sigma, which is
  here the grid on EDM, whose time is sigma.
- Align Your Steps is the paper's table, whose last number is the noise that is left; diffusers writes 0 in its place.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.schedulers.scheduling_utils import AysSchedules  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff import grids  # noqa: E402

EDM, TABLE = jd.processes.EDM(), jd.processes.Discrete.scaled_linear(1000)
N = 12


def theirs(**options):
    scheduler = diffusers.EulerDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear", **options)
    scheduler.set_timesteps(N)
    return scheduler.sigmas.numpy(), scheduler.timesteps.numpy()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_sigmas_and_the_times_that_the_table_gives_them(kind):
    sigmas, times = theirs(**{f"use_{kind}_sigmas": True})
    high, low = float(sigmas[0]), float(sigmas[-2])
    if kind == "beta":
        inner = grids.beta(EDM, N - 1, start=high, end=low).sigma
        levels = grids.from_sigmas(TABLE, [*np.asarray(inner), 0])
    else:
        levels = getattr(grids, kind)(TABLE, N, sigma_min=low, sigma_max=high)
    np.testing.assert_allclose(levels.sigma / levels.alpha, sigmas, rtol=2e-6)
    np.testing.assert_allclose(levels.t[:-1] - 1, times, rtol=1e-5, atol=1e-3)  # theirs are float32


def test_shifted_times_of_a_flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, N + 1)[:-1])  # sigmas that are given are shifted once
    np.testing.assert_allclose(grids.shifted(jd.processes.Flow(), N, 3.0).t, scheduler.sigmas, rtol=1e-6)
    flux = diffusers.FlowMatchEulerDiscreteScheduler(1000, use_dynamic_shifting=True)
    flux.set_timesteps(sigmas=np.linspace(1, 1 / N, N), mu=0.8)
    np.testing.assert_allclose(grids.shifted(jd.processes.Flow(), N, np.exp(0.8)).t, flux.sigmas, rtol=1e-6)


def test_align_your_steps():
    names = {"": "1.5", "XL": "xl"}
    for name, ours in names.items():
        sigmas, times = (AysSchedules[f"StableDiffusion{name}{kind}"] for kind in ("Sigmas", "Timesteps"))
        ours = grids.AYS[f"stable-diffusion-{ours}"]
        assert list(ours[:-1]) == sigmas[:-1] and sigmas[-1] == 0
        levels = grids.from_sigmas(TABLE, jnp.asarray(ours))
        np.testing.assert_allclose(levels.t[:-1] - 1, times, atol=1.5)  # the table's integers that are near
    assert list(grids.AYS["stable-video-diffusion"][:-1]) == AysSchedules["StableDiffusionVideoSigmas"][:-1]
