"""DPM-Solver against its paper's algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
T = np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.05])


def vp(lam):
    """(alpha, sigma) of VP by lam."""
    return 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))


def eps(x, lam):
    alpha, sigma = vp(lam)
    return (x - alpha * rational(x, Level(np.nan, alpha, sigma))) / sigma


def solver_1(x, s, t):
    """DPM-Solver-1 of Lu et al. 2022a, from lam = s to lam = t, in the paper's indices; the other two follow."""
    return vp(t)[0] / vp(s)[0] * x - vp(t)[1] * np.expm1(t - s) * eps(x, s)


def solver_2(x, s, t, r=0.5):
    h, m = t - s, s + r * (t - s)
    u = vp(m)[0] / vp(s)[0] * x - vp(m)[1] * np.expm1(r * h) * eps(x, s)
    return solver_1(x, s, t) - vp(t)[1] / (2 * r) * np.expm1(h) * (eps(u, m) - eps(x, s))


def solver_3(x, s, t, r1=1 / 3, r2=2 / 3):
    h, s1, s2 = t - s, s + r1 * (t - s), s + r2 * (t - s)
    u1 = solver_1(x, s, s1)
    D1 = eps(u1, s1) - eps(x, s)
    u2 = solver_1(x, s, s2) - vp(s2)[1] * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * D1
    D2 = eps(u2, s2) - eps(x, s)
    return solver_1(x, s, t) - vp(t)[1] / r2 * (np.expm1(h) / h - 1) * D2


def run(solver, levels, x, denoise=rational):
    return jax.jit(lambda x: jd.sample(denoise, solver, levels, x, KEY))(x)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
def test_is_the_papers_algorithm_on_an_uneven_grid(order):
    start, process = np.random.default_rng(0).normal(size=(5, 2)), jd.processes.VP()
    levels = process(T)
    x = start
    for s, t in zip(levels.lam[:-1], levels.lam[1:], strict=True):
        x = [solver_1, solver_2, solver_3][order - 1](x, float(s), float(t))
    # The chord's level and the process's: rational looks at x / alpha and sigma / alpha alone.
    for named in (None, process):
        out = run(jd.solvers.dpm_solver(order, named), levels, jnp.asarray(start))
        np.testing.assert_allclose(out, x, rtol=1e-8)
    ddim = run(jd.solvers.ddim(), levels, jnp.asarray(start))
    assert np.allclose(out, ddim, rtol=1e-12) is (order == 1)


def test_steps_from_pure_noise_and_to_clean_data_are_of_order_1():
    levels, x = jd.grids.by_time(jd.processes.Flow(), 2), jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    out = [run(solver, levels, x) for solver in (jd.solvers.dpm_solver(3), jd.solvers.ddim())]
    np.testing.assert_allclose(*out, rtol=1e-12)


@pytest.mark.parametrize("order", [0, 4, 2.5, 2.0])
def test_another_order_is_refused(order):
    with pytest.raises(ValueError, match=r"order of dpm_solver must be 1, 2 or 3, got"):
        jd.solvers.dpm_solver(order)


def test_says_what_it_costs():
    assert [jd.solvers.dpm_solver(order)[2:5] for order in (1, 2, 3)] == [(1, 1, False), (2, 2, False), (3, 3, False)]
