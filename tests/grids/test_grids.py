"""Grids against published formulas and published lists of steps."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids

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
    for grid in (grids.karras, grids.exponential):
        levels = grid(EDM, 1, sigma_min=0.002, sigma_max=80.0)
        np.testing.assert_allclose(levels.sigma, [80, 0], rtol=1e-6)


def test_by_time_is_equal_steps_with_exact_ends():
    levels = grids.by_time(FLOW, 4)
    np.testing.assert_array_equal(levels.t, [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_array_equal(levels.alpha, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(grids.by_time(EDM, 3, start=8.0, end=2.0).sigma, [8, 6, 4, 2], rtol=1e-6)
    by_table = grids.by_time(TABLE, 2, start=1000, end=0)
    np.testing.assert_allclose(by_table.alpha, [TABLE.alpha[1000], TABLE.alpha[500], 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("process", "start", "end"),
    [(VP, 1.0, 1e-3), (FLOW, 0.99, 0.01), (VE, 1.0, 0.0), (EDM, 80.0, 0.002), (TABLE, 1000, 1)],
)
def test_by_lambda_is_equal_steps_of_half_the_log_snr(process, start, end):
    levels, lam = jax.jit(lambda: ((at := grids.by_lambda(process, 10, start=start, end=end)), at.lam))()
    steps = np.diff(np.asarray(lam, np.float64))
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)
    assert steps.mean() > 0
    np.testing.assert_allclose([levels.t[0], levels.t[-1]], [start, end], rtol=1e-3, atol=1e-6)


# Lists as published: Lin et al. 2023 (arXiv:2305.08891), table 2, for T = 1000 and 10 steps, counted from 1.
PUBLISHED = {
    "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
    "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
}


@pytest.mark.parametrize("spacing", PUBLISHED)
def test_ddpm_strides_are_the_published_ones(spacing):
    levels = grids.ddpm(TABLE, 10, spacing)
    np.testing.assert_array_equal(levels.t, [*PUBLISHED[spacing], 0])
    assert levels.t.dtype == jnp.int32
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(levels.alpha[:-1], np.sqrt(abar[np.array(PUBLISHED[spacing]) - 1]), rtol=1e-6)
    np.testing.assert_allclose(levels.sigma[:-1], np.sqrt(1 - abar[np.array(PUBLISHED[spacing]) - 1]), rtol=1e-6)
    assert is_clean(levels)


def test_ddpm_strides_of_numbers_that_do_not_divide_t():
    np.testing.assert_array_equal(grids.ddpm(TABLE, 3, "trailing").t, [1000, 667, 333, 0])
    np.testing.assert_array_equal(grids.ddpm(TABLE, 3, "leading").t, [667, 334, 1, 0])
    np.testing.assert_array_equal(
        grids.ddpm(TABLE, 7, "linspace").t, [1000, 833, 667, 501, 334, 167, 1, 0]
    )  # 499.5 and 166.5 to even


@pytest.mark.parametrize("spacing", PUBLISHED)
def test_ddpm_strides_fall_strictly_for_every_n(spacing, monkeypatch):
    monkeypatch.setattr(import_module("jaxdiff.grids.listed"), "jnp", np)  # a thousand shapes
    monkeypatch.setattr(type(TABLE), "__call__", lambda self, t: t)
    for n in range(1, 1001):
        t = np.asarray(grids.ddpm(TABLE, n, spacing))
        assert t.shape == (n + 1,) and np.all(np.diff(t) < 0) and t[-1] == 0 and t[0] <= 1000
    np.testing.assert_array_equal(t, np.arange(1000, -1, -1))


def test_ends_may_be_traced_and_compile_once():
    traces = []

    @jax.jit
    def f(high, low, rho):
        traces.append(1)
        return (
            grids.karras(VP, 5, sigma_min=low, sigma_max=high, rho=rho),
            grids.exponential(VP, 5, sigma_min=low, sigma_max=high),
            grids.by_time(VP, 5, start=high / 100, end=low),
            grids.by_lambda(VP, 5, start=high / 100, end=low),
        )

    for high, low, rho in ((80.0, 0.01, 7.0), (50.0, 0.02, 3.0)):
        karras, exponential, by_time, by_lambda = f(*jnp.array([high, low, rho], jnp.float32))
        np.testing.assert_allclose((karras.sigma / karras.alpha)[jnp.array([0, 4])], [high, low], rtol=1e-3)
        np.testing.assert_allclose((exponential.sigma / exponential.alpha)[jnp.array([0, 4])], [high, low], rtol=1e-3)
        for levels in (by_time, by_lambda):
            np.testing.assert_allclose(levels.t[jnp.array([0, 5])], [high / 100, low], rtol=1e-3)
    assert len(traces) == 1


def test_a_grid_has_a_step():
    for n in (0, -3):
        with pytest.raises(ValueError, match="at least one step"):
            grids.by_time(VP, n)
        with pytest.raises(ValueError, match="at least one step"):
            grids.karras(VP, n, sigma_min=0.1, sigma_max=1.0)
        with pytest.raises(ValueError, match=r"1\.\.1000"):
            grids.ddpm(TABLE, n)


def test_a_grid_that_ends_above_its_start_is_refused():
    for start, end in ((0.2, 0.9), (0.5, 0.5)):
        with pytest.raises(ValueError, match=f"end < start; got start = {start}, end = {end}"):
            grids.by_time(VP, 5, start=start, end=end)
        with pytest.raises(ValueError, match="end < start"):
            grids.by_lambda(VP, 5, start=start, end=end)
    for grid in (grids.karras, grids.exponential):
        for low, high in ((2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)):
            with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
                grid(EDM, 5, sigma_min=low, sigma_max=high)


def test_equal_steps_of_lambda_need_finite_ends():
    for start, end in ((1.0, 0.1), (0.9, 0.0)):
        with pytest.raises(ValueError, match="finite lam"):
            grids.by_lambda(FLOW, 5, start=start, end=end)


def test_ddpm_strides_refuse_more_steps_than_the_table_has_and_other_spacings():
    with pytest.raises(ValueError, match=r"1\.\.1000, the length of the table, got 1001"):
        grids.ddpm(TABLE, 1001)
    with pytest.raises(ValueError, match="leading, trailing, linspace, got 'uniform'"):
        grids.ddpm(TABLE, 10, "uniform")


def test_a_key_or_a_fraction_is_no_number_of_steps():
    for n in (jax.random.key(3), 2.5):
        with pytest.raises(ValueError, match="integer number of steps"):
            jd.grids.by_time(jd.processes.VP(), n)
