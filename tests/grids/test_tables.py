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
        with pytest.raises(ValueError, match="at least two decreasing numbers"):
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


# diffusers' `set_timesteps` of DDPM and DDIM, written out. tests/parity asks diffusers itself.
WRITTEN_OUT = {
    "leading": lambda T, n: (np.arange(n) * (T // n)).round()[::-1],
    "linspace": lambda T, n: np.linspace(0, T - 1, n).round()[::-1],
    "trailing": lambda T, n: np.round(np.arange(T, 0, -T / n))[:n] - 1,  # rounding gives a time more for some n
}


@pytest.mark.parametrize("spacing", PUBLISHED)
def test_ddpm_strides_are_diffusers_and_fall_strictly_for_every_n(spacing, monkeypatch):
    monkeypatch.setattr(import_module("jaxdiff.grids.tables"), "jnp", np)  # a thousand shapes
    monkeypatch.setattr(type(TABLE), "__call__", lambda self, t: t)
    for n in range(1, 1001):
        t = np.asarray(grids.ddpm(TABLE, n, spacing))
        if (spacing, n) != ("linspace", 1):  # T alone here, 1 there
            np.testing.assert_array_equal(t[:-1], WRITTEN_OUT[spacing](1000, n) + 1, f"{n} steps")
        assert t.shape == (n + 1,) and np.all(np.diff(t) < 0) and t[-1] == 0 and t[0] <= 1000
    np.testing.assert_array_equal(t, np.arange(1000, -1, -1))


def test_a_traced_number_of_ddpm_strides_is_that_of_the_plain_one():
    each = jax.vmap(lambda n: [grids.ddpm(TABLE, n, spacing, max_steps=12).t for spacing in PUBLISHED])
    for spacing, strides in zip(PUBLISHED, jax.jit(each)(jnp.arange(1, 13)), strict=True):
        assert strides.dtype == jnp.int32
        for n in (1, 3, 7, 12):
            plain = np.asarray(grids.ddpm(TABLE, n, spacing).t)
            np.testing.assert_array_equal(strides[n - 1], [*plain, *[0] * (12 - n)])


def test_ddpm_strides_refuse_more_steps_than_the_table_has_and_other_spacings():
    for n, max_steps, said in ((0, None, "n must"), (1001, None, "n must"), (5, 1001, "max_steps must")):
        with pytest.raises(ValueError, match=rf"{said} lie in 1\.\.1000, the length of the table, got"):
            grids.ddpm(TABLE, n, max_steps=max_steps)
    with pytest.raises(ValueError, match="leading, trailing, linspace, got 'uniform'"):
        grids.ddpm(TABLE, 10, "uniform")


@pytest.mark.parametrize("make", [grids.ddpm, lambda process, n: grids.respaced(process, f"ddim{n}")])
def test_a_process_without_a_table_is_refused(make):
    with pytest.raises(ValueError, match=r"those of a table \(processes.Discrete\), got VP"):
        make(VP, 10)


def space_timesteps(T, counts):
    """guided_diffusion/respace.py, written out: a sorted list of times that are counted from 0."""
    if isinstance(counts, str) and counts.startswith("ddim"):
        return next(list(range(0, T, i)) for i in range(1, T) if len(range(0, T, i)) == int(counts[4:]))
    counts = [int(n) for n in counts.split(",")] if isinstance(counts, str) else counts
    start, times = 0, []
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        place = 0.0
        for _ in range(count):
            times.append(start + round(place))
            place += 1 if count <= 1 else (size - 1) / (count - 1)
        start += size
    return sorted(set(times))


def times_of(T, sections, monkeypatch):
    with monkeypatch.context() as patch:  # numpy, for thousands of shapes
        patch.setattr(import_module("jaxdiff.grids.tables"), "jnp", np)
        patch.setattr(type(TABLE), "__call__", lambda self, t: t)
        patch.setattr(type(TABLE), "T", T)
        return grids.respaced(TABLE, sections)


def test_respaced_is_guided_diffusions(monkeypatch):
    rng = np.random.default_rng(0)
    asked = [(1000, "10,15,20"), (300, (10, 15, 20)), (1000, "90,60,60,20,20"), (1000, " 5, 0,1"), (4000, "ddim250")]
    asked += [(1000, f"ddim{n}") for n in (2, 5, 25, 50, 100, 250, 334, 500, 1000)]
    asked += [(T, (n,)) for T in (1000, 4000) for n in range(1, T + 1, 29)] + [(100, (n,)) for n in range(1, 101)]
    for _ in range(300):
        T, parts = int(rng.integers(5, 1200)), int(rng.integers(1, 6))
        asked.append((T, tuple(map(int, rng.integers(1, T // parts + 1, parts)))))
    for T, sections in asked:
        t = times_of(T, sections, monkeypatch)
        np.testing.assert_array_equal(t[::-1], [0, *(1 + i for i in space_timesteps(T, sections))], f"{T} {sections}")


def test_respaced_levels_are_those_of_the_respaced_betas():
    levels = grids.respaced(TABLE, "2,3,4")
    assert levels.t.dtype == jnp.int32 and levels.t.tolist()[-3:] == [334, 1, 0]
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[space_timesteps(1000, [2, 3, 4])]
    betas = 1 - abar / np.append(1, abar[:-1])  # SpacedDiffusion's
    np.testing.assert_allclose(1 - np.square(levels.alpha[:-1] / levels.alpha[1:])[::-1], betas, rtol=1e-3)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ("ddim1", "no integer stride below T = 1000"),
        ("ddim400", "no integer stride"),
        ("ddimten", "no integer stride"),
        ("ddim", "no integer stride"),
        ("10,x", "whole numbers of times"),
        ("", "whole numbers of times"),
        ([], "whole numbers of times"),
        ((3, -1), "whole numbers of times"),
        ((3, 2.5), "whole numbers of times"),
        ("0,0", "whole numbers of times"),
        ("501,10", "a section of 500 times has no 501"),
        ((334, 334, 334), "a section of 333 times has no 334"),
    ],
)
def test_respaced_refuses_what_cannot_be(sections, said):
    with pytest.raises(ValueError, match=said):
        grids.respaced(TABLE, sections)
