"""The exponential Adams methods' integrals and polynomials; orders of what the solvers' table doesn't see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, gaussian
from helpers.optimized import OPTIMIZED
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff import Level, solvers
from jaxdiff.solvers.adams import moments, weights

pytestmark = pytest.mark.usefixtures("x64")
VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
KEY = jax.random.key(0)


def grid(process, n, longest, **ends):
    """n steps that are uniform in lam; then its last level, as far as step `longest`, so that programs are shared."""
    levels = jd.grids.by_lambda(process, n, **ends)
    return Level(*(np.pad(np.asarray(field), (0, longest - n), mode="edge") for field in levels))


def test_moments_are_the_integrals_for_steps_of_any_length_and_sign():
    H = np.array([1e-9, 1e-3, 0.5, 1.9, 2.1, 9.0, 80.0, -1e-9, -0.5, -1.9, -2.1, -9.0])
    expected = [[quad(lambda u: h * np.exp(-h * (1 - u)) * u**j, 0, 1, epsabs=0)[0] for j in range(4)] for h in H]  # noqa: B023
    both = jax.jit(jax.vmap(lambda H: moments(H, 4)))
    np.testing.assert_allclose(both(jnp.asarray(H)), expected, rtol=1e-12)
    np.testing.assert_allclose(both(jnp.asarray(H, jnp.float32)), expected, rtol=3e-6)


@pytest.mark.slow
def test_weights_integrate_polynomials_through_the_usable_nodes():
    u, moment, of = np.array([1, 0, -0.7, -2.0]), np.array([0.5, 0.3, 0.2, 0.1]), jax.jit(weights)
    for n in (1, 2, 3, 4):
        w = of(u, np.arange(4) < n, moment)
        np.testing.assert_allclose(np.vander(u, 4, increasing=True).T[:n] @ w, moment[:n], rtol=1e-12)
        assert np.all(w[n:] == 0)


# Orders of convergence of the variants, on a Gaussian's exact flow


def slope(solver, process=VP, start=0.6, end=0.05, ns=(50, 200), *, warm=4, data=BLOB):
    """Of the error after n steps that are uniform in lam, the first few of which end on the exact path."""
    x = jnp.asarray(BLOB.draw(np.random.default_rng(0), 8, process(jnp.float64(start))))

    @jax.jit
    def error(levels, n):
        def step(i, carry):
            cur, nxt = levels.at(i), levels.at(i + 1)
            moved, state = solver.step(data.denoise, KEY, *carry, cur, nxt)
            return jnp.where(i < warm, BLOB.flow(x, levels.at(0), nxt), moved), state

        out = jax.lax.fori_loop(0, n, step, (x, solver.init(x)))[0]
        return jnp.sqrt(jnp.mean((out - BLOB.flow(x, levels.at(0), levels.at(-1))) ** 2))

    coarse, fine = (float(error(grid(process, n, max(ns), start=start, end=end), n)) for n in ns)
    return np.log(coarse / fine) / np.log(ns[1] / ns[0])


class Timed:
    """BLOB's denoiser for VP as a network knows it: told the time alone."""

    def denoise(x, level):
        return BLOB.denoise(x, VP(level.t))


ORDERS = {
    "dpm_solver 1": solvers.dpm_solver(1),
    "dpm_solver 3": solvers.dpm_solver(3),
    "deis 1": solvers.deis(1),
    "deis 3": solvers.deis(3),
    "unipc 1": solvers.unipc(1),
    "unipc 2, bh1": solvers.unipc(2, "bh1"),
    "unipc 2, bh2": solvers.unipc(2),
    "unipc 2, bh1, no corrector": solvers.unipc(2, "bh1", corrector=False),
    "unipc 3, no corrector": solvers.unipc(3, corrector=False),
    "unipc 4, no corrector": solvers.unipc(4, corrector=False),
    "2m_sde 0, heun": solvers.dpmpp_2m_sde(0.0, variant="heun"),
    "sa 1, 0": solvers.sa_solver(1, 0, 0.0),
    "sa 1, 1": solvers.sa_solver(1, 1, 0.0),
    "sa 1, 2": solvers.sa_solver(1, 2, 0.0),
    "sa 2, 4": solvers.sa_solver(2, 4, 0.0),
    "sa 3, 0": solvers.sa_solver(3, 0, 0.0),
    "dpmpp_sde 0, r = 0.3": solvers.dpmpp_sde(0.0, r=0.3),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "deis 3" else pytest.mark.slow) for n in ORDERS])
def test_order_of_variants(name):
    found = slope(ORDERS[name])
    print(name, found)
    assert abs(found - ORDERS[name].order) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unipc 3", "sa 3, 4"])
def test_order_4_on_finer_grids(name):
    solver = solvers.unipc(3) if name == "unipc 3" else solvers.sa_solver(3, 4, 0.0)
    assert solver.order == 4 and abs(slope(solver, ns=(200, 800)) - 4) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_er_sde_without_noise(order):
    assert abs(slope(solvers.er_sde(order, jnp.zeros_like)) - order) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpm_solver 2", "dpm_solver 3", "dpmpp_2s", "dpmpp_sde"])
def test_inner_points_of_a_network_that_is_told_the_time(name):
    of = {
        "dpm_solver 2": lambda process: solvers.dpm_solver(2, process),
        "dpm_solver 3": lambda process: solvers.dpm_solver(3, process),
        "dpmpp_2s": solvers.dpmpp_2s,
        "dpmpp_sde": lambda process: solvers.dpmpp_sde(0.0, process=process),
    }[name]
    order = of(None).order
    assert abs(slope(of(VP), data=Timed, warm=0) - order) < 0.15
    # Without the process the inner point's time is off by O(h^2), and the answer with it.
    assert abs(slope(of(None), data=Timed, warm=0) - 2) < 0.25
    assert abs(slope(of(None), FLOW, 0.8, 0.1, warm=0) - order) < 0.15


# With noise


STOCHASTIC = {
    "2s_ancestral": lambda noise: solvers.dpmpp_2s_ancestral(noise_sampler=noise),
    "2s_ancestral 0.6": lambda noise: solvers.dpmpp_2s_ancestral(0.6, noise_sampler=noise),
    "sde": lambda noise: solvers.dpmpp_sde(noise_sampler=noise),
    "sde 0.6, r = 0.3": lambda noise: solvers.dpmpp_sde(0.6, r=0.3, noise_sampler=noise),
    "2m_sde": lambda noise: solvers.dpmpp_2m_sde(noise_sampler=noise),
    "2m_sde 0.5, heun": lambda noise: solvers.dpmpp_2m_sde(0.5, variant="heun", noise_sampler=noise),
    "3m_sde": lambda noise: solvers.dpmpp_3m_sde(noise_sampler=noise),
    "sa": lambda noise: solvers.sa_solver(noise_sampler=noise),
    "sa 2, 2, tau by level": lambda noise: solvers.sa_solver(2, 2, lambda level: level.sigma, noise_sampler=noise),
    "er_sde": lambda noise: solvers.er_sde(noise_sampler=noise),
    "er_sde 1": lambda noise: solvers.er_sde(1, noise_sampler=noise),
    "sa 1, 2": lambda noise: solvers.sa_solver(1, 2, noise_sampler=noise),
    "er_sde 2, SDE": lambda noise: solvers.er_sde(2, jnp.log, noise_sampler=noise),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order(name):
    """Data is one Gaussian number: the sample is affine in x_T and the draws, and a gradient gives the coefficients."""
    data, errors = gaussian([0.7], [[0.3]]), []

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def end(x, z, levels, n):
        def noise(key, x, cur, nxt):
            i = jnp.sum(levels.sigma > cur.sigma * (1 - 1e-9)) - 1
            inner = jnp.min(jnp.abs(levels.sigma - cur.sigma)) > 1e-9
            return jnp.full_like(x, z[i, inner.astype(int)])

        return jd.sample(data.denoise, STOCHASTIC[name](noise), levels, x[None, None], KEY, stop=n)[0, 0]

    for n in (100, 400):
        levels = grid(EDM, n, 400, start=4.0, end=0.15)
        (mean, var), (end_mean, end_var) = (data.moments(levels.at(i)) for i in (0, -1))
        found, (by_x, by_z) = end(mean[0], np.zeros((400, 2)), levels, n)
        errors.append([abs(found - end_mean[0]), abs(by_x**2 * var[0, 0] + jnp.sum(by_z**2) - end_var[0, 0])])
    errors, order = np.array(errors), STOCHASTIC[name](jd.noise.white).order
    slope = np.log(errors[0, 1] / errors[1, 1]) / np.log(4)
    print(name, slope, errors[1])
    assert np.all(errors[:, 0] < 1e-10)  # the mean's path is straight
    # Where little noise is drawn (ER-SDE) the ODE's higher order is still seen.
    assert -0.15 < slope - order < 0.5


# Those of the default settings are in `test_moments`.
VARIANTS = [
    "2s_ancestral 0.6",
    "sde 0.6, r = 0.3",
    "2m_sde 0.5, heun",
    "sa 2, 2, tau by level",
    "sa 1, 2",
    "er_sde 2, SDE",
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "process"), [(n, "vp") for n in VARIANTS] + [("sde", "ve"), ("sa", "ve")])
def test_mean_and_covariance_of_a_gaussian(name, process):
    levels = {"vp": VP(np.linspace(1.0, 0.0, 81) ** 1.5), "ve": EDM(np.append(np.geomspace(80, 0.01, 80), 0))}[process]
    levels, n = jax.tree.map(lambda field: np.asarray(field, np.float32), levels), 50_000
    x = BLOB.draw(np.random.default_rng(0), n, levels.at(0)).astype(np.float32)
    solver = STOCHASTIC[name](jd.noise.white)
    run = jax.jit(lambda x, key: jd.sample(BLOB.denoise, solver, levels, x, key), compiler_options=OPTIMIZED)
    out = np.asarray(run(x, jax.random.key(0, impl="rbg")), np.float64)
    mean, cov = BLOB.moments(Level(0.0, 1.0, 0.0))
    print(name, out.mean(0) - mean, (np.cov(out.T) - cov) / np.trace(cov))
    # Four standard errors, and 1 % of the covariance for the finite step.
    assert np.all(np.abs(out.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n) + 2e-3)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(out.T) - cov) < 4 * error + 0.01 * np.trace(cov))


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_more_steps_follow_the_same_brownian_path(name):
    x = jnp.asarray(BLOB.draw(np.random.default_rng(0), 64, VP(jnp.float64(0.9))))
    key = jax.random.key(1, impl="rbg")  # thousands of draws: threefry takes most of the time

    of_path = jd.noise.brownian(jax.random.key(2, impl="rbg"))

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def run(levels, n, fresh):  # one program for all
        noise = lambda *args: jax.lax.cond(fresh, jd.noise.white, of_path, *args)  # noqa: E731
        return jd.sample(BLOB.denoise, STOCHASTIC[name](noise), levels, x, key, stop=n)

    def apart(fresh):
        """How far the ends of n and of 4 n steps are from each other, n = 25 and 100."""
        ends = [run(grid(VP, n, 400, start=0.9, end=0.02), n, fresh) for n in (25, 100, 400)]
        return np.sqrt(np.mean(np.diff(ends, axis=0) ** 2, axis=(1, 2)))

    path, fresh = apart(False), apart(True)
    print(name, path, fresh)
    assert path[1] < path[0] / 2 and path[1] < 0.1 * fresh[1]
