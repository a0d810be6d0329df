"""Runge-Kutta methods against their textbook forms, and the adaptive ones against SciPy's, step by step."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, rational
from scipy.integrate import solve_ivp

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
EDM, VP, FLOW = jd.processes.EDM(), jd.processes.VP(), jd.processes.Flow()
PAIRS = {"RK45": jd.solvers.rk45, "RK23": jd.solvers.rk23}
WHOLE = EDM(np.array([80.0, 0.01]))
solve = partial(jax.jit, static_argnums=(0, 1))(
    lambda denoise, solver, levels, x: jd.sample_state(denoise, solver, levels, x, KEY)
)


@jax.jit
def solve_to(tolerance, levels, x):
    """CLUSTERS by rk45, with a tolerance that is traced."""
    return jd.sample_state(CLUSTERS.denoise, jd.solvers.rk45(tolerance, tolerance), levels, x, KEY)


def start(n=4, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), dtype)


# The classical method


@pytest.mark.parametrize("name", ["edm", pytest.param("flow", marks=pytest.mark.slow)])
def test_rk4_is_the_classical_method_in_the_process_s_own_time(name):
    process = {"edm": EDM, "flow": FLOW}[name]
    t, x = np.array([0.9, 0.7, 0.6, 0.2, 0.0]), np.asarray(start())

    def slope(x, t):  # dx/dsigma = eps for EDM, dx/dt = eps - x0 for flow
        alpha = 1 - t if name == "flow" else 1.0
        x0 = rational(x, Level(t, alpha, t))
        return (x - alpha * x0) / t - (x0 if name == "flow" else 0)

    for cur, nxt in pairwise(t[:-1]):
        h = nxt - cur
        k1 = slope(x, cur)
        k2 = slope(x + h / 2 * k1, cur + h / 2)
        k3 = slope(x + h / 2 * k2, cur + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, nxt))
    x = x - t[-2] * slope(x, t[-2])  # to clean data: Euler's step
    out, _ = solve(rational, jd.solvers.rk4(), process(t), start())
    np.testing.assert_allclose(out, x, rtol=1e-9)


def told_the_time(x, level):
    """A denoiser like a VP network's: it is told t, and trusts that x is at VP's level of that time."""
    return BLOB.denoise(x, VP(level.t))


@pytest.mark.slow
@pytest.mark.parametrize(("process", "order"), [(VP, 4), (None, 2)], ids=["process", "no process"])
def test_order_of_rk4_where_the_network_is_told_the_time(process, order):
    errors = []
    for n in (25, 100):
        levels = jd.grids.by_time(VP, n, start=0.8, end=0.1)
        ends = [jax.tree.map(lambda field: field[i], levels) for i in (0, -1)]  # noqa: B023
        out, _ = solve(told_the_time, jd.solvers.rk4(process), levels, start())
        errors.append(float(jnp.sqrt(jnp.mean((out - BLOB.flow(start(), *ends)) ** 2))))
    slope = np.log(errors[0] / errors[1]) / np.log(4)
    print("slope", slope, errors)
    np.testing.assert_allclose(slope, order, atol=0.15)


# The adaptive ones


@pytest.mark.parametrize("name", [pytest.param("RK45", marks=pytest.mark.slow), "RK23"])
def test_each_example_takes_scipys_steps(name):
    # A second implementation with the same control: the same answer after the same number of evaluations.
    x = 80 * start()
    out, state = solve(CLUSTERS.denoise, PAIRS[name](1e-4, 1e-5), WHOLE, x)
    denoise = jax.jit(CLUSTERS.denoise)
    for i, y in enumerate(np.asarray(x)):

        def slope(w, y):
            sigma = 80 + w * (0.01 - 80)
            return (y - np.asarray(denoise(y[None], Level(sigma, 1.0, sigma)))[0]) / sigma * (0.01 - 80)

        scipys = solve_ivp(slope, (0, 1), y, method=name, first_step=1.0, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out[i], scipys.y[:, -1], rtol=1e-9)
        assert state.nfe[i] == scipys.nfev
    assert len(set(state.nfe.tolist())) > 1 and not state.failed.any()


@pytest.mark.slow
def test_the_error_falls_with_the_tolerance_in_float32_too_and_turning_it_compiles_nothing():
    x = 80 * start(16)
    solve_to.clear_cache()
    exact, _ = solve_to(1e-11, WHOLE, x)
    errors = [float(jnp.max(jnp.abs(solve_to(tolerance, WHOLE, x)[0] - exact))) for tolerance in (1e-3, 1e-5, 1e-7)]
    assert solve_to._cache_size() == 1
    print("errors at tolerances 1e-3, 1e-5, 1e-7:", errors)
    assert all(error < 100 * tolerance for error, tolerance in zip(errors, (1e-3, 1e-5, 1e-7), strict=True))
    single, state = solve(CLUSTERS.denoise, jd.solvers.rk45(1e-3, 1e-4), WHOLE, x.astype(jnp.float32))
    double, _ = solve(CLUSTERS.denoise, jd.solvers.rk45(1e-3, 1e-4), WHOLE, x)
    assert single.dtype == state.step.dtype == jnp.float32
    assert np.max(np.abs(single - np.asarray(double, np.float32))) < 1e-3  # the same steps, rounded


@pytest.mark.slow
def test_of_a_gaussian_it_is_exact_to_the_tolerance_on_every_process():
    for process, ends in ((VP, [1.0, 0.001]), (EDM, [80.0, 0.002]), (FLOW, [0.999, 0.001])):
        levels = process(np.array(ends))
        first, last = (jax.tree.map(lambda field: field[i], levels) for i in (0, 1))  # noqa: B023
        x = first.sigma * start()
        out, state = solve(BLOB.denoise, jd.solvers.rk45(1e-9, 1e-9, process), levels, x)
        print(type(process).__name__, state.nfe)
        np.testing.assert_allclose(out, BLOB.flow(x, first, last), atol=1e-6)


def test_reports_its_evaluations_and_asks_at_one_level_per_example():
    batches = []

    def counted(x, level):
        jax.debug.callback(lambda sigma: batches.append(np.shape(sigma)), level.sigma)
        return CLUSTERS.denoise(x, level)

    levels = FLOW(np.array([1.0, 0.01, 0.0]))  # from pure noise, and at the end the denoiser itself
    out, state = solve(counted, jd.solvers.rk45(1e-4, 1e-4), levels, start())
    jax.effects_barrier()
    assert len(batches) == state.nfe.max() > state.nfe.min() and set(batches) == {(), (4,)}
    at_end, _ = solve(CLUSTERS.denoise, jd.solvers.rk45(1e-4, 1e-4), FLOW(np.array([1.0, 0.01])), start())
    np.testing.assert_allclose(out, CLUSTERS.denoise(at_end, FLOW(0.01)), rtol=1e-9)
    assert np.all(np.isfinite(out)) and np.array_equal(out.shape, (4, 2))


@pytest.mark.slow
def test_an_example_is_solved_as_if_it_were_alone():
    # With others that are easy (near the data's mean) or hard; any shape, through a network told VP's time.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 3))) * jnp.array([0.1, 1.0, 30.0])[:, None, None]
    net = lambda params, x, noise, cond: jnp.tanh(params * x + noise[:, None, None])  # noqa: E731
    denoise, levels = jd.denoiser(net, 2.0, jd.parameterize.v), VP(np.array([0.9, 0.4, 0.01]))
    solver = jd.solvers.rk45(1e-5, 1e-5, VP)
    together, state = solve(denoise, solver, levels, x)
    for i in (0, 2):
        alone, state_alone = solve(denoise, solver, levels, x[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-9)
        assert state_alone.nfe[0] == state.nfe[i]
    assert len(set(state.nfe.tolist())) > 1


@pytest.mark.slow
def test_the_inner_levels_are_the_processes_own():
    seen = []

    def noted(x, level):
        jax.debug.callback(lambda *fields: seen.append(fields), *level)
        return CLUSTERS.denoise(x, level)

    solve(noted, jd.solvers.rk23(1e-2, 1e-2, VP), VP(np.array([0.9, 0.1])), start())
    jax.effects_barrier()
    for t, alpha, sigma in seen:
        np.testing.assert_allclose(VP(t)[1:], (alpha, sigma), rtol=1e-9)


@pytest.mark.slow
def test_the_step_size_goes_on_to_the_next_interval():
    solver, levels = jd.solvers.rk45(1e-7, 1e-7), FLOW(np.linspace(1, 0.01, 9))
    x, anew = start(), 0
    _, state = solve(CLUSTERS.denoise, solver, levels, x)
    for i in range(8):
        x, fresh = solve(CLUSTERS.denoise, solver, jax.tree.map(lambda field: field[i : i + 2], levels), x)  # noqa: B023
        anew = anew + fresh.nfe
    print("evaluations going on:", state.nfe, "starting anew:", anew)
    assert np.all(state.nfe < anew)


def test_ends_at_max_steps_with_what_is_left_in_one_step_and_says_so():
    x, state = solve(rational, jd.solvers.rk45(1e-6, 1e-6, max_steps=3), WHOLE, 80 * start())
    assert np.all(state.failed) and np.all(state.nfe == 1 + 3 * 6) and np.all(np.isfinite(x))


def test_a_network_that_breaks_on_an_example_breaks_that_example_and_the_program_ends():
    broken = lambda x, level: jnp.where(x[:, :1] > 1e6, jnp.nan, rational(x, level))  # noqa: E731
    x = jnp.concatenate([start(2), 1e7 * jnp.ones((1, 2))])
    out, state = solve(broken, jd.solvers.rk23(1e-3, 1e-3), EDM(np.array([5.0, 0.1])), x)
    assert np.all(np.isfinite(out[:2])) and np.all(np.isnan(out[2])) and state.nfe[2] < 100
    assert state.failed.tolist() == [False, False, True]


def test_forward_mode_derivative():
    levels = FLOW(np.array([1.0, 0.02, 0.0]))

    @jax.jit
    def value_and_slope(scale):
        def f(scale):
            denoise = lambda x, level: rational(scale * x, level)  # noqa: E731
            return jnp.sum(jnp.sin(jd.sample(denoise, jd.solvers.rk23(1e-6, 1e-6), levels, start(), KEY)))

        return jax.jvp(f, (scale,), (jnp.ones_like(scale),))

    low, high = value_and_slope(0.9 - 1e-6)[0], value_and_slope(0.9 + 1e-6)[0]
    np.testing.assert_allclose(value_and_slope(0.9)[1], (high - low) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("factory", PAIRS.values(), ids=PAIRS.keys())
def test_refuses_what_is_no_tolerance(factory):
    for bad, message in (
        ({"rtol": 0.0}, "rtol must be positive, got 0.0"),
        ({"atol": -1}, "atol must be positive, got -1"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            factory(**bad)
