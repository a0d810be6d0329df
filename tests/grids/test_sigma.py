"""Grids that divide a function of sigma / alpha, against published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import Level, grids

VP, EDM, FLOW, VE = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow(), jd.processes.VE()
TABLE = jd.processes.Discrete.linear(1000)


def is_clean(levels):
    return (float(levels.t[-1]), float(levels.alpha[-1]), float(levels.sigma[-1])) == (0, 1, 0)


def test_karras_is_equation_5():
    N, rho, sigma_min, sigma_max = 18, 7, 0.002, 80.0
    i = np.arange(N)
    t = (sigma_max ** (1 / rho) + i / (N - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    levels = grids.karras(EDM, N, sigma_min=sigma_min, sigma_max=sigma_max)
    np.testing.assert_allclose(levels.sigma[:-1], t, rtol=1e-5)
    assert is_clean(levels) and all(field.shape == (N + 1,) for field in levels)


def test_polyexponential_is_a_power_of_equal_steps_in_log_sigma():
    for rho in (0.5, 1.0, 3.0):
        levels = jax.jit(lambda rho: grids.polyexponential(EDM, 6, sigma_min=0.01, sigma_max=20.0, rho=rho))(rho)
        power = (np.arange(5, -1, -1) / 5) ** rho
        np.testing.assert_allclose(levels.sigma[:-1], np.exp(np.log(0.01) + power * np.log(2000)), rtol=1e-5)
        assert is_clean(levels)
    of_rho = lambda rho: grids.polyexponential(EDM, 6, sigma_min=0.01, sigma_max=20.0, rho=rho).sigma  # noqa: E731
    by_rho = jax.jit(jax.jacfwd(of_rho))(2.0)
    assert np.all(np.isfinite(by_rho)) and np.all(by_rho[1:5] < 0)


@pytest.mark.parametrize("process", [VP, FLOW, VE, TABLE], ids=["vp", "flow", "ve", "table"])
def test_karras_and_exponential_space_sigma_over_alpha_in_any_process(process):
    karras, exponential = jax.jit(
        lambda: (
            grids.karras(process, 9, sigma_min=0.05, sigma_max=20.0, rho=3.0),
            grids.exponential(process, 9, sigma_min=0.05, sigma_max=20.0),
        )
    )()
    roots = (karras.sigma / karras.alpha)[:-1] ** (1 / 3)
    np.testing.assert_allclose(roots, np.linspace(20 ** (1 / 3), 0.05 ** (1 / 3), 9), rtol=1e-4)
    np.testing.assert_allclose((exponential.sigma / exponential.alpha)[:-1], np.geomspace(20, 0.05, 9), rtol=1e-4)
    for levels in (karras, exponential):
        again = jax.jit(process)(levels.t[:-1])  # the times are the process's own
        np.testing.assert_allclose(again.sigma / again.alpha, (levels.sigma / levels.alpha)[:-1], rtol=1e-4)
        assert is_clean(levels)


def test_one_step_goes_from_the_noisiest_level_to_clean_data():
    for grid in (grids.karras, grids.exponential, grids.polyexponential):
        levels = grid(EDM, 1, sigma_min=0.002, sigma_max=80.0)
        np.testing.assert_allclose(levels.sigma, [80, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("process", "start", "end"),
    [(VP, 1.0, 1e-3), (FLOW, 0.99, 0.01), (VE, 1.0, 0.0), (EDM, 80.0, 0.002), (TABLE, 1000, 1)],
)
def test_by_lambda_is_equal_steps_of_half_the_log_snr(process, start, end):
    levels, lam = jax.jit(lambda: ((at := grids.by_lambda(process, 10, start=start, end=end)), at.lam))()
    steps = np.diff(np.asarray(lam, np.float64))
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)
    assert steps.mean() > 0
    np.testing.assert_array_equal(levels.t[jnp.array([0, -1])], np.float32([start, end]))  # no round trip


def test_by_angle_is_equal_times_of_the_cosine_process_from_end_to_end():
    cosine = grids.by_time(jd.processes.Cosine(), 8)
    for process in (jd.processes.Cosine(), FLOW):
        levels = jax.jit(grids.by_angle, static_argnums=1)(process, 8)
        assert (levels.alpha[0], levels.sigma[-1]) == (0, 0)
        inner = slice(1, -1)
        np.testing.assert_allclose(
            (levels.sigma / levels.alpha)[inner], (cosine.sigma / cosine.alpha)[inner], rtol=1e-5
        )
    by_scale = jax.jit(jax.jacrev(lambda scale: grids.by_angle(FLOW, 8, scale=scale).t))(0.5)
    assert np.all(np.isfinite(by_scale)) and np.all(by_scale[1:-1] > 0)


@pytest.mark.usefixtures("x64")
def test_by_angle_is_where_eulers_error_on_a_gaussian_is_stationary():
    # Sabour et al. 2024, theorem 3.1, with data of standard deviation c.
    c, key = 0.4, jax.random.key(0)
    denoise = lambda x, level: c**2 / (c**2 + level.sigma**2) * x  # noqa: E731

    @jax.jit
    def gain(sigma):
        levels = Level(sigma, jnp.ones_like(sigma), sigma)
        return jd.sample(denoise, jd.solvers.euler(), levels, jnp.ones((1, 1)), key)[0, 0]

    def slope(scale):
        sigma = grids.by_angle(EDM, 6, start=80.0, end=0.002, scale=scale).sigma
        return np.asarray(jax.grad(lambda log: jnp.log(gain(jnp.exp(log))))(jnp.log(sigma)))[1:-1]

    assert np.max(np.abs(slope(c))) < 1e-10 < 1e-2 < np.max(np.abs(slope(1.0)))


def test_ends_that_make_no_grid_are_refused():
    for grid in (grids.karras, grids.exponential, grids.polyexponential):
        for low, high in ((2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)):
            with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
                grid(EDM, 5, sigma_min=low, sigma_max=high)
    for start, end in ((1.0, 0.1), (0.9, 0.0)):
        with pytest.raises(ValueError, match="finite lam"):
            grids.by_lambda(FLOW, 5, start=start, end=end)
    with pytest.raises(ValueError, match="scale, the data's standard deviation, must be positive, got 0"):
        grids.by_angle(FLOW, 5, scale=0.0)
    with pytest.raises(ValueError, match="rho must be positive, got -1"):
        grids.polyexponential(EDM, 5, sigma_min=0.1, sigma_max=1.0, rho=-1.0)
    with pytest.raises(ValueError, match="rho must be positive, got 0"):
        grids.karras(EDM, 5, sigma_min=0.1, sigma_max=1.0, rho=0)
