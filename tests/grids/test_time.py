"""Grids that divide the time, against published formulas."""

from math import pi

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd
from jaxdiff import grids
from jaxdiff.grids.time import beta_quantile

VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
TABLE = jd.processes.Discrete.linear(1000)
BETAS = [(0.6, 0.6), (0.3, 2.0), (1.0, 1.0), (5.0, 0.4), (30.0, 40.0)]


def test_by_time_is_equal_steps_with_exact_ends():
    levels = grids.by_time(FLOW, 4)
    np.testing.assert_array_equal(levels.t, [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_array_equal(levels.alpha, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(grids.by_time(EDM, 3, start=8.0, end=2.0).sigma, [8, 6, 4, 2], rtol=1e-6)
    by_table = grids.by_time(TABLE, 2, start=1000, end=0)
    np.testing.assert_allclose(by_table.alpha, [TABLE.alpha[1000], TABLE.alpha[500], 1], rtol=1e-5)


@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "float64"])
def test_beta_quantiles_are_scipys_from_both_tails(x64):
    with jax.enable_x64(x64):
        quantile = jax.jit(lambda *args: beta_quantile(*args))  # a cache of its own
        share = jnp.linspace(0, 1, 101, dtype=float)
        for alpha, beta in BETAS:
            q, rest = quantile(share, jnp.asarray(alpha, float), jnp.asarray(beta, float))
            u = np.linspace(0, 1, 101)
            rtol = 1e-12 if x64 else 1e-4  # relative: 1e-8 at an end is not 0
            low = u <= 0.5
            np.testing.assert_allclose(q[low], stats.beta.ppf(u, alpha, beta)[low], rtol=rtol)
            np.testing.assert_allclose(rest[~low], stats.beta.ppf(1 - u, beta, alpha)[~low], rtol=rtol)
            np.testing.assert_allclose(q + rest, 1, rtol=1e-6)
        assert quantile._cache_size() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_beta_takes_its_quantiles_for_times():
    times = jax.jit(lambda alpha, beta, start: grids.beta(EDM, 12, alpha=alpha, beta=beta, start=start, end=0.5).t)
    i = np.arange(13)
    for alpha, beta in BETAS[:2]:
        quantiles = stats.beta.ppf(1 - i / 12, alpha, beta)
        np.testing.assert_allclose(times(alpha, beta, 80.0), 0.5 + 79.5 * quantiles, rtol=1e-11)
    np.testing.assert_allclose(times(0.5, 0.5, 1.5), 1 + np.cos(pi * i / 12) / 2, rtol=1e-11)
    np.testing.assert_allclose(times(1.0, 1.0, 1.5), 1.5 - i / 12, rtol=1e-11)
    by_start = jax.jit(jax.jacfwd(times, argnums=2))(*BETAS[0], 80.0)
    np.testing.assert_allclose(by_start, stats.beta.ppf(1 - i / 12, *BETAS[0]), rtol=1e-11, atol=1e-15)


def test_cosine_is_sway_sampling_with_time_counted_from_noise():
    u = np.linspace(0, 1, 11)
    np.testing.assert_allclose(grids.cosine(FLOW, 10).t, np.cos(pi * u / 2), atol=1e-6)
    np.testing.assert_allclose(grids.cosine(FLOW, 10, sway=0.0).t, 1 - u, atol=1e-6)
    for sway in (-1.0, -0.4, 1.75):
        levels = grids.cosine(EDM, 10, sway=sway, start=8.0, end=2.0)
        gone = u + sway * (np.cos(pi * u / 2) - 1 + u)
        np.testing.assert_allclose(levels.t, 8 - 6 * gone, rtol=1e-6)
    ends = grids.cosine(FLOW, 10)
    assert (ends.alpha[0], ends.sigma[0], ends.alpha[-1], ends.sigma[-1]) == (0, 1, 1, 0)


@pytest.mark.parametrize("shift", [0.3, 1.15, 3.0])
def test_shifted_times_are_equation_23_and_scale_sigma_over_alpha_of_a_flow(shift):
    levels, plain = grids.shifted(FLOW, 9, shift), grids.by_time(FLOW, 9)
    t = np.linspace(1, 0, 10)
    np.testing.assert_allclose(levels.t, shift * t / (1 + (shift - 1) * t), rtol=1e-6)
    inner = slice(1, -1)
    ratio = (levels.sigma / levels.alpha)[inner] / (plain.sigma / plain.alpha)[inner]
    np.testing.assert_allclose(ratio, shift, rtol=1e-5)
    of_process = grids.by_time(jd.processes.Shifted(FLOW, shift), 9)
    np.testing.assert_allclose(levels.sigma, of_process.sigma, atol=1e-6)
    assert (levels.alpha[0], levels.sigma[0], levels.alpha[-1], levels.sigma[-1]) == (0, 1, 1, 0)


def test_numbers_that_make_no_grid_are_refused():
    for start, end in ((0.2, 0.9), (0.5, 0.5)):
        for grid in (grids.by_time, grids.by_lambda, grids.by_angle, grids.beta, grids.cosine):
            with pytest.raises(ValueError, match=f"end < start; got start = {start}, end = {end}"):
                grid(VP, 5, start=start, end=end)
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=f"{name} of a Beta distribution must be positive, got 0"):
            grids.beta(VP, 5, **{name: 0.0})
    for sway in (-1.1, 1.8):
        with pytest.raises(ValueError, match=r"sway must lie in \[-1, 2 / \(pi - 2\)\]"):
            grids.cosine(VP, 5, sway=sway)
    with pytest.raises(ValueError, match="shift must be positive, got -1"):
        grids.shifted(FLOW, 5, -1.0)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got start = 80"):
        grids.shifted(EDM, 5, 3.0, start=80.0)
