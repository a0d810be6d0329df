"""DPM-Solver-12 and 23 with steps by the error: tolerances, limits, noise; step by step in parity/test_k_diffusion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, rational

import jaxdiff as jd

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
EDM, VP, FLOW = jd.processes.EDM(), jd.processes.VP(), jd.processes.Flow()
WHOLE = EDM(np.array([80.0, 0.01]))
adaptive = jd.solvers.dpm_adaptive
solve = partial(jax.jit, static_argnums=(0, 1))(
    lambda denoise, solver, levels, x, key=KEY: jd.sample_state(denoise, solver, levels, x, key)
)


def start(n=4, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), dtype)


@pytest.mark.slow
def test_one_step_an_interval_is_dpm_solvers():
    """Of a denoiser that depends on t through its level alone, so that the names of inner points show, too."""
    levels = VP(np.array([0.9, 0.7, 0.4, 0.1, 0.0]))
    told = lambda x, level: rational(x, VP(level.t))  # noqa: E731
    out, state = solve(told, adaptive(3, process=VP, max_steps=1), levels, start())
    expected, _ = solve(told, jd.solvers.dpm_solver(3, VP), levels, start())
    np.testing.assert_allclose(out, expected, rtol=1e-9)
    assert np.all(state.nfe == 10) and np.any(state.failed)


@pytest.mark.slow
def test_the_error_falls_with_the_tolerance_in_float32_too_and_turning_it_compiles_nothing():
    x = 80 * start(16)
    exact, _ = solve(CLUSTERS.denoise, jd.solvers.rk45(1e-11, 1e-11), WHOLE, x)
    for order in (2, 3):

        @jax.jit
        def solve_to(tolerance, x, order=order):
            solver = adaptive(order, tolerance, tolerance, max_steps=4000)
            return jd.sample_state(CLUSTERS.denoise, solver, WHOLE, x, KEY)

        tolerances = (1e-3, 1e-5, 1e-6)
        ends = [solve_to(tolerance, x) for tolerance in tolerances]
        errors = [float(jnp.max(jnp.abs(end - exact))) for end, _ in ends]
        nfe = [state.nfe.mean() for _, state in ends]
        print("order", order, "errors:", errors, "evaluations:", nfe)
        assert solve_to._cache_size() == 1 and errors[2] < errors[1] < errors[0]
        assert all(error < 20 * tolerance for error, tolerance in zip(errors, tolerances, strict=True))
        # A step of length h errs by h^order, and as many are needed.
        np.testing.assert_allclose(np.log(nfe[2] / nfe[1]) / np.log(10), 1 / order, atol=0.1)
    single, state = solve_to(jnp.float32(1e-3), x.astype(jnp.float32))
    assert single.dtype == state.step.dtype == jnp.float32
    np.testing.assert_allclose(single, ends[0][0], atol=1e-3)


@pytest.mark.slow
def test_of_a_gaussian_it_is_exact_to_the_tolerance_where_the_network_is_told_the_time():
    levels = VP(np.array([1.0, 0.001]))
    first, last = (jax.tree.map(lambda field: field[i], levels) for i in (0, 1))  # noqa: B023
    told = lambda x, level: BLOB.denoise(x, VP(level.t))  # noqa: E731
    x = first.sigma * start()
    out, state = solve(told, adaptive(3, 1e-6, 1e-6, VP), levels, x)
    np.testing.assert_allclose(out, BLOB.flow(x, first, last), atol=1e-4)
    assert not state.failed.any()


@pytest.mark.slow
def test_reports_its_evaluations_and_asks_at_one_level_per_example():
    batches = []

    def counted(x, level):
        jax.debug.callback(lambda sigma: batches.append(np.shape(sigma)), level.sigma)
        return CLUSTERS.denoise(x, level)

    levels = FLOW(np.array([1.0, 0.999, 0.01, 0.0]))  # from pure noise, and at the end the denoiser itself
    out, state = solve(counted, adaptive(), levels, start())
    jax.effects_barrier()
    assert len(batches) == state.nfe.max() > state.nfe.min() and set(batches) == {(), (4,)}
    assert np.all((state.nfe - 2) % 3 == 0) and np.all(np.isfinite(out)) and not state.failed.any()


@pytest.mark.slow
def test_a_network_that_breaks_on_an_example_breaks_that_example_and_the_program_ends():
    broken = lambda x, level: jnp.where(x[:, :1] > 1e6, jnp.nan, rational(x, level))  # noqa: E731
    x = jnp.concatenate([start(2), 1e7 * jnp.ones((1, 2))])
    out, state = solve(broken, adaptive(pid=(0.3, 0.4, 0.1)), EDM(np.array([5.0, 0.1])), x)
    assert np.all(np.isfinite(out[:2])) and np.all(np.isnan(out[2])) and state.nfe[2] < 100
    assert state.failed.tolist() == [False, False, True]


@pytest.mark.slow
def test_with_noise_it_follows_one_brownian_path_whatever_the_tolerance():
    """At eta = 1 it solves the reverse SDE: where many steps of another solver end along the same path."""
    keys, others = jax.random.split(jax.random.key(7), (2, 16))
    x, fine = 80 * start(16), EDM(np.geomspace(80, 0.01, 1001))
    exact, _ = solve(CLUSTERS.denoise, jd.solvers.dpmpp_2m_sde(noise_sampler=jd.noise.brownian(keys)), fine, x, keys)

    @jax.jit
    def end(tolerance, eta, keys):
        solver = adaptive(2, tolerance, tolerance, eta=eta, noise_sampler=jd.noise.brownian(keys))
        return jd.sample(CLUSTERS.denoise, solver, WHOLE, x, keys)

    far = lambda end: float(jnp.sqrt(jnp.mean(jnp.square(end - exact))))  # noqa: E731
    errors = [far(end(tolerance, 1.0, keys)) for tolerance in (1e-1, 1e-3, 1e-5)]
    print("errors along the path:", errors, "and along others:", far(end(1e-3, 1.0, others)))
    assert errors[2] < errors[1] / 2 < errors[0] / 4 and errors[2] < 0.02
    assert far(end(1e-3, 1.0, others)) > 0.3
    # Without noise no path is seen.
    np.testing.assert_allclose(end(1e-3, 0.0, keys), end(1e-3, 0.0, others), rtol=1e-9)


@pytest.mark.slow
def test_the_step_that_goes_on_stays_finite_over_many_easy_intervals():
    levels = EDM(np.geomspace(80, 0.01, 201))
    _, state = solve(lambda x, level: 0.5 * jnp.ones_like(x), adaptive(), levels, start(dtype=jnp.float32))
    assert np.all(np.isfinite(state.step)) and np.all(state.nfe == 3 * 200) and not state.failed.any()


@pytest.mark.slow
def test_forward_mode_derivative():
    levels = FLOW(np.array([1.0, 0.95, 0.02, 0.0]))

    @jax.jit
    def value_and_slope(scale):
        def f(scale):
            denoise = lambda x, level: rational(scale * x, level)  # noqa: E731
            return jnp.sum(jnp.sin(jd.sample(denoise, adaptive(), levels, start(), KEY)))

        return jax.jvp(f, (scale,), (jnp.ones_like(scale),))

    low, high = value_and_slope(0.9 - 1e-6)[0], value_and_slope(0.9 + 1e-6)[0]
    np.testing.assert_allclose(value_and_slope(0.9)[1], (high - low) / 2e-6, rtol=1e-4)


def test_refuses_what_is_no_setting():
    for bad, message in (
        ({"order": 1}, "order of dpm_adaptive must be 2 or 3, got 1"),
        ({"rtol": 0.0}, "rtol must be positive, got 0.0"),
        ({"h_init": -0.1}, "h_init must be positive, got -0.1"),
        ({"eta": 1.5}, r"eta must be a finite number in \[0, 1\], got 1.5"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            adaptive(**bad)
