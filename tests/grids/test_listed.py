"""Grids that are lists, against the published lists."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids

VP, EDM = jd.processes.VP(), jd.processes.EDM()
TABLE = jd.processes.Discrete.linear(1000)
SIGMAS = [14.615, 6.475, 3.861, 2.697, 0.152, 0.029]


def loglinear(sigmas, n):
    """n numbers at equal steps along the piecewise linear logarithm of a list."""
    return np.exp(np.interp(np.linspace(0, len(sigmas) - 1, n), np.arange(len(sigmas)), np.log(sigmas)))


def test_a_list_is_the_grid_of_its_levels_in_any_process():
    for process in (VP, TABLE):
        levels, again = jax.jit(lambda: (at := grids.from_sigmas(process, SIGMAS), process(at.t)))()  # noqa: B023
        np.testing.assert_allclose(levels.sigma / levels.alpha, SIGMAS, rtol=1e-4)
        np.testing.assert_allclose(again.sigma, levels.sigma, rtol=1e-5)
    clean = grids.from_sigmas(VP, [*SIGMAS, 0])
    np.testing.assert_allclose((clean.sigma / clean.alpha)[:-1], SIGMAS, rtol=1e-4)
    assert (clean.t[-1], clean.alpha[-1], clean.sigma[-1]) == (0, 1, 0)


def test_another_number_of_steps_is_log_linear():
    for n in (1, 5, 12):
        np.testing.assert_allclose(grids.from_sigmas(EDM, SIGMAS, n).sigma, loglinear(SIGMAS, n + 1), rtol=1e-5)
        clean = grids.from_sigmas(EDM, [*SIGMAS, 0.0], n).sigma  # the step to clean data is none of the logarithm's
        np.testing.assert_allclose(clean, [*loglinear(SIGMAS, n), 0], rtol=1e-5)
    traced = jax.jit(lambda sigmas: grids.from_sigmas(EDM, sigmas, 12))(jnp.asarray(SIGMAS))
    np.testing.assert_allclose(traced.sigma, loglinear(SIGMAS, 13), rtol=1e-5)


def test_align_your_steps_lists_have_ten_steps_and_fall():
    for sigmas in grids.AYS.values():
        assert len(sigmas) == 11 and np.all(np.diff(sigmas) < 0) and sigmas[-1] > 0


def test_no_list_is_refused():
    for sigmas in ([1.0], [[2.0, 1.0]], [1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="at least two falling numbers"):
            grids.from_sigmas(EDM, sigmas)


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
    assert (levels.alpha[-1], levels.sigma[-1]) == (1, 0)


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


def test_a_traced_number_of_ddpm_strides_is_that_of_the_plain_one():
    each = jax.vmap(lambda n: [grids.ddpm(TABLE, n, spacing, at_most=12).t for spacing in PUBLISHED])
    for spacing, strides in zip(PUBLISHED, jax.jit(each)(jnp.arange(1, 13)), strict=True):
        assert strides.dtype == jnp.int32
        for n in (1, 3, 7, 12):
            plain = np.asarray(grids.ddpm(TABLE, n, spacing).t)
            np.testing.assert_array_equal(strides[n - 1], [*plain, *[0] * (12 - n)])


def test_ddpm_strides_refuse_more_steps_than_the_table_has_and_other_spacings():
    for n, at_most, said in ((0, None, "n must"), (1001, None, "n must"), (5, 1001, "at_most must")):
        with pytest.raises(ValueError, match=rf"{said} lie in 1\.\.1000, the length of the table, got"):
            grids.ddpm(TABLE, n, at_most=at_most)
    with pytest.raises(ValueError, match="leading, trailing, linspace, got 'uniform'"):
        grids.ddpm(TABLE, 10, "uniform")
