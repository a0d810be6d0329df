"""The scan: what it refuses, its path, its progress, and a whole sampling run against the exact answer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, rational
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import Level
from jaxdiff.sample import check_levels

FLOW, VP = jd.processes.Flow(), jd.processes.VP()
KEY = jax.random.key(0)


def halve(params, x, noise, cond, *, key=None):
    return 0.5 * x + noise[:, None]


def grid(t, alpha=None, sigma=None):
    t = np.asarray(t, np.float32)
    return Level(t, 1 - t if alpha is None else np.float32(alpha), t if sigma is None else np.float32(sigma))


def start(n=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), jnp.float32)


def test_the_path_ends_at_the_sample_and_starts_after_the_first_step():
    levels, x = grid([0.9, 0.6, 0.3, 0.0]), start()
    solver = jd.solvers.heun()
    out = jd.sample(rational, solver, levels, x, KEY)
    last, path = jd.sample_path(rational, solver, levels, x, KEY)
    np.testing.assert_array_equal(last, out)
    assert path.shape == (3, 4, 2)
    np.testing.assert_array_equal(path[-1], out)
    first = jd.sample(rational, solver, levels.at(slice(None, 2)), x, KEY)
    np.testing.assert_allclose(path[0], first, rtol=1e-6)


def test_the_trace_is_any_tree_of_x_and_the_level_it_has_reached():
    _, (norm, t) = jd.sample_path(
        rational,
        jd.solvers.euler(),
        grid([0.9, 0.6, 0.3]),
        start(),
        KEY,
        trace=lambda x, level: (jnp.sum(x**2, axis=1), level.t),
    )
    assert norm.shape == (2, 4)
    np.testing.assert_allclose(t, [0.6, 0.3], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_progress_counts_every_step(jit):
    seen = []
    run = lambda x: jd.sample(  # noqa: E731
        rational,
        jd.solvers.euler(),
        grid(np.linspace(0.9, 0, 8)),
        x,
        KEY,
        progress=lambda done: seen.append(int(done)),
    )
    jax.block_until_ready((jax.jit(run) if jit else run)(start()))
    jax.effects_barrier()
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]
    _ = jd.sample_path(rational, jd.solvers.euler(), grid([0.9, 0.5]), start(), KEY, progress=lambda i: seen.append(-1))
    jax.effects_barrier()
    assert seen.count(-1) == 1


def test_progress_on_a_sharded_batch_counts_every_step_once():
    seen, mesh = [], jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(start(8), NamedSharding(mesh, PartitionSpec("data")))
    levels = grid(np.linspace(0.9, 0, 5))
    jax.block_until_ready(
        jax.jit(
            lambda x: jd.sample(rational, jd.solvers.euler(), levels, x, KEY, progress=lambda i: seen.append(int(i)))
        )(x)
    )
    jax.effects_barrier()
    assert sorted(seen) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "levels",
    [
        Level(np.zeros(3), np.ones(3), np.ones(2)),
        Level(np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 2))),
        Level(np.zeros(1), np.ones(1), np.ones(1)),
        Level(0.0, 1.0, 1.0),
    ],
    ids=["unequal", "two axes", "no step", "one level"],
)
def test_levels_that_are_no_grid_are_refused(levels):
    with pytest.raises(ValueError, match=r"all have shape \[N \+ 1\], N >= 1, got shapes"):
        jd.sample(rational, jd.solvers.euler(), levels, start(), KEY)


@pytest.mark.parametrize("t", [[0.1, 0.9], [0.9, 0.5, 0.5, 0.1], [0.9, 0.5, 0.6, 0.0], [0.9, np.nan, 0.1]])
def test_a_grid_that_ends_above_its_start_or_does_not_fall_is_refused(t):
    with pytest.raises(ValueError, match="noise of a grid falls"):
        jd.sample(rational, jd.solvers.euler(), grid(t), start(), KEY)
    with pytest.raises(ValueError, match="noise of a grid falls"):
        jax.jit(lambda x: jd.sample(rational, jd.solvers.euler(), grid(t), x, KEY))(start())


def test_where_a_grid_does_not_fall_is_said():
    with pytest.raises(ValueError, match=r"at level 1 sigma / alpha is 0.5 / 0.5, at the next 0.6 / 0.4"):
        check_levels(grid([0.9, 0.5, 0.6, 0.0]))


@pytest.mark.slow
def test_every_grid_of_every_process_falls():
    # Long grids too, whose ends in float32 are closest to one another.
    for n in (1, 1000):
        check_levels(jd.grids.ddpm(jd.processes.Discrete.linear(), n))
        check_levels(jd.grids.ddpm(jd.processes.Discrete.cosine(), n))
        check_levels(jd.grids.ddpm(jd.processes.Discrete.scaled_linear().zero_terminal_snr(), n))
        check_levels(jd.grids.karras(jd.processes.EDM(), n, sigma_min=0.002, sigma_max=80.0))
        check_levels(jd.grids.by_time(VP, n))
        check_levels(jd.grids.by_time(FLOW, n))


PURE_NOISE = {
    "flow": lambda: jd.grids.by_time(FLOW, 4),
    "cosine": lambda: jd.grids.by_time(jd.processes.Cosine(), 4),
    "zero terminal SNR": lambda: jd.grids.ddpm(jd.processes.Discrete.linear().zero_terminal_snr(), 4),
}


@pytest.mark.parametrize("levels", PURE_NOISE.values(), ids=PURE_NOISE.keys())
@pytest.mark.parametrize("jit", [False, True])
def test_predictions_that_pure_noise_does_not_determine_are_refused_there(levels, jit):
    levels = levels()
    assert levels.alpha[0] == 0
    for row in (jd.parameterize.eps, jd.parameterize.score, jd.parameterize.edm(0.5)):
        denoise = jd.guidance.cfg(*[jd.denoiser(halve, None, row)] * 2, 2.0)
        run = lambda x: jd.sample(denoise, jd.solvers.euler(), levels, x, KEY)  # noqa: E731, B023
        with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
            (jax.jit(run) if jit else run)(start())
        with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
            jd.sample(denoise, jd.solvers.euler(), levels, start(), KEY, start=0)
        jax.eval_shape(lambda x: jd.sample(denoise, jd.solvers.euler(), levels, x, KEY, start=1), start())  # noqa: B023
    for row in (jd.parameterize.v, jd.parameterize.velocity, jd.parameterize.x0):
        denoise = jd.denoiser(halve, None, row)
        run = lambda x: jd.sample(denoise, jd.solvers.euler(), levels, x, KEY)  # noqa: E731, B023
        assert np.all(np.isfinite((jax.jit(run) if jit else run)(start())))


def test_predictions_of_eps_are_welcome_elsewhere():
    denoise = jd.denoiser(halve, None, jd.parameterize.eps)
    assert np.all(
        np.isfinite(jd.sample(denoise, jd.solvers.euler(), jd.grids.by_time(FLOW, 4, start=0.99), start(), KEY))
    )


def test_solvers_compute_at_the_precision_of_x(x64):
    levels = jd.grids.by_time(VP, 3)  # float64 here
    for dtype in (jnp.float32, jnp.float64):
        run = lambda x: jd.sample(rational, jd.solvers.dpmpp_2m(), levels, x, KEY)  # noqa: E731
        assert jax.eval_shape(run, jax.ShapeDtypeStruct((4, 2), dtype)).dtype == dtype


@pytest.mark.slow
def test_a_whole_run_draws_the_data():
    """From the prior to data with a few steps of Heun: the mixture's mean and covariance."""
    levels = jd.grids.karras(VP, 20, sigma_min=0.01, sigma_max=80.0)
    keys = jax.random.split(KEY, 20_000)
    x = jax.jit(
        lambda k: jd.sample(CLUSTERS.denoise, jd.solvers.heun(), levels, jd.noise.prior(levels, k, (20_000, 2)), k)
    )(keys)
    mean, cov = CLUSTERS.moments(Level(0, 1, 0))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.04)


def test_what_is_not_asked_for_is_not_in_the_program():
    levels, solver = grid([0.9, 0.5, 0.0]), jd.solvers.euler()
    sample = partial(jd.sample, rational, solver, levels, start(), KEY)
    plain = str(jax.make_jaxpr(sample)())
    assert "callback" not in plain and "cond" not in plain and "remat" not in plain
    assert "callback" in str(jax.make_jaxpr(lambda: sample(progress=lambda done: None))())
    assert "cond" in str(jax.make_jaxpr(lambda: sample(stop=1))())


def test_settings_are_swept_in_one_program():
    levels, etas, scales = grid([0.9, 0.6, 0.3, 0.0]), jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 2.0])

    @jax.jit
    def run(eta, scale):
        denoise = jd.guidance.cfg(rational, lambda x, level: 0.5 * x, scale)
        return jd.sample(denoise, jd.solvers.ddim(eta), levels, start(), KEY)

    sweep = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(etas, scales)
    assert sweep.shape == (3, 2, 4, 2)
    for i, eta in enumerate(etas):
        for j, scale in enumerate(scales):
            np.testing.assert_allclose(sweep[i, j], run(eta, scale), rtol=1e-5, atol=1e-6)


# Steps that are left out, and states that are not kept

SOME = [jd.solvers.heun(), jd.solvers.dpmpp_2m(), jd.solvers.ddim(0.5)]  # with no state, with one, with noise


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOME)
def test_the_number_of_steps_up_to_a_maximum_is_traced(solver):
    """A grid that repeats its last level, and `stop`: the shorter grid's sample, one program, for many by `vmap`."""
    short, long = [0.9, 0.6, 0.3, 0.0], [0.9, 0.7, 0.5, 0.3, 0.1, 0.0]
    padded = jax.tree.map(lambda *fields: jnp.stack(fields), grid(short + [0.0] * 3), grid([*long, 0.0]))
    calls = []

    def denoise(x, level):
        calls.append(1)
        return rational(x, level)

    @jax.jit
    def run(levels, stop):
        return jd.sample(denoise, solver, levels, start(), KEY, stop=stop)

    out = [run(jax.tree.map(lambda f, i=i: f[i], padded), n) for i, n in enumerate((3, 5))]
    assert run._cache_size() == 1 and len(calls) == solver.nfe
    for x, t in zip(out, (short, long), strict=True):
        np.testing.assert_allclose(x, jd.sample(rational, solver, grid(t), start(), KEY), rtol=1e-5, atol=1e-6)

    def total(levels):
        at_once = jax.vmap(run)(levels, jnp.array([3, 5]))
        return jnp.sum(at_once), at_once

    grads, at_once = jax.jit(jax.grad(total, has_aux=True))(padded)
    np.testing.assert_allclose(at_once, out, rtol=1e-5, atol=1e-6)
    # Skipped steps leave no NaN under `vmap`, where they are taken and discarded.
    assert all(np.all(np.isfinite(field)) for field in (grads.alpha, grads.sigma))


def test_steps_of_half_precision_are_taken_in_float32():
    levels = jd.grids.by_time(jd.processes.VP(), 200)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.bfloat16)
    for draw in (
        lambda x: jd.sample(rational, jd.solvers.dpmpp_2m(), levels, x, KEY),
        lambda x: jd.invert(rational, levels, x),
        lambda x: jd.sample_parallel(rational, jd.solvers.ddim(), levels, x, KEY, window=200)[0],
    ):
        short, whole = jax.jit(lambda x, draw=draw: (draw(x), draw(x.astype(jnp.float32))))(x)
        assert short.dtype == jnp.bfloat16 and np.isfinite(whole).all()
        np.testing.assert_array_equal(short, whole.astype(jnp.bfloat16))


def test_a_step_between_equal_levels_is_refused():
    padded = grid([0.9, 0.6, 0.3, 0.0, 0.0, 0.0])
    assert np.isfinite(jd.sample(rational, jd.solvers.ddim(), padded, start(), KEY, stop=3)).all()
    with pytest.raises(ValueError, match=r"at level 3 sigma / alpha is 0 / 1, at the next 0 / 1"):
        jd.sample(rational, jd.solvers.ddim(), padded, start(), KEY, stop=5)


@pytest.mark.parametrize("stop", [None, 3])
def test_skipped_steps_call_no_network(stop):
    seen = []

    def denoise(x, level):
        jax.debug.callback(lambda t: seen.append(round(float(t), 2)), level.t)
        return rational(x, level)

    levels = grid([0.9, 0.7, 0.5, 0.3, 0.1])
    run = jax.jit(lambda x, i: jd.sample(denoise, jd.solvers.euler(), levels, x, KEY, start=i, stop=stop))
    jax.block_until_ready(run(start(), 1))
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [0.7, 0.5, 0.3][: None if stop is None else 2]


def test_starting_late_and_stopping_early_are_parts_of_the_whole():
    levels, solver = grid([0.9, 0.7, 0.5, 0.3, 0.0]), jd.solvers.ddim(1.0)
    whole, path = jd.sample_path(rational, solver, levels, start(), KEY)
    early = jd.sample(rational, solver, levels, start(), KEY, stop=2)
    np.testing.assert_allclose(early, path[1], rtol=1e-6)
    np.testing.assert_allclose(jd.sample(rational, solver, levels, early, KEY, start=2), whole, rtol=1e-5)
    part, rest = jd.sample_path(rational, solver, levels, early, KEY, start=2, trace=lambda x, level: (x, level.t))
    np.testing.assert_allclose(rest[0], [early, early, path[2], path[3]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rest[1], levels.t[1:])
    np.testing.assert_array_equal(part, rest[0][-1])


@pytest.mark.parametrize("part", [{"start": 4}, {"start": -1}, {"stop": 4}, {"stop": -1}])
def test_parts_lie_within_the_grid(part):
    (name,) = part
    sampled = lambda x, **part: jd.sample(  # noqa: E731
        rational, jd.solvers.euler(), grid([0.9, 0.5, 0.2, 0.0]), x, KEY, **part
    )
    with pytest.raises(ValueError, match=f"{name} must be a level of the grid, from 0 to 3, got"):
        sampled(start(), **part)
    jax.eval_shape(partial(sampled, **{name: jnp.int32(2)}), start())


def test_a_grid_may_repeat_its_end_only_where_a_stop_is_given():
    with pytest.raises(ValueError, match="noise of a grid falls"):
        jd.sample(rational, jd.solvers.euler(), grid([0.9, 0.5, 0.0, 0.0]), start(), KEY)
    with pytest.raises(ValueError, match="noise of a grid falls"):
        jd.sample(rational, jd.solvers.euler(), grid([0.9, 0.5, 0.6, 0.0, 0.0]), start(), KEY, stop=2)


def test_sample_state_tells_what_the_solver_remembers():
    levels = grid([0.9, 0.6, 0.3])
    x, memory = jd.sample_state(rational, jd.solvers.dpmpp_2m(), levels, start(), KEY)
    np.testing.assert_array_equal(x, jd.sample(rational, jd.solvers.dpmpp_2m(), levels, start(), KEY))
    before = jd.sample(rational, jd.solvers.dpmpp_2m(), grid([0.9, 0.6]), start(), KEY)
    np.testing.assert_allclose(memory.x0s[0], rational(before, Level(0.6, 0.4, 0.6)), rtol=1e-5)
    np.testing.assert_allclose(memory.lams[0], np.log(0.4 / 0.6), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOME)
def test_remat_keeps_the_root_of_the_states(solver, x64):
    """Same value, path and gradient; memory that grows with sqrt(N), where without it it grows with N."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1000)))

    def loss(theta, n, remat):
        denoise = lambda x, level: jnp.tanh(theta * rational(x, level))  # noqa: E731
        levels = jd.grids.by_time(VP, n)
        return jnp.sum(jnp.square(jd.sample(denoise, solver, levels, x, KEY, remat=remat)))

    def compiled(n, remat):
        return jax.jit(jax.value_and_grad(lambda theta: loss(theta, n, remat))).lower(jnp.float64(0.7)).compile()

    plain, kept = ([compiled(n, remat) for n in (60, 960)] for remat in (False, True))
    for a, b in zip(plain[0](jnp.float64(0.7)), kept[0](jnp.float64(0.7)), strict=True):  # no square: 8 chunks of 8
        np.testing.assert_allclose(a, b, rtol=1e-10)
    naive, memory = ([run.memory_analysis().temp_size_in_bytes for run in runs] for runs in (plain, kept))
    assert memory[1] / memory[0] < 5 and naive[1] / naive[0] > 10 and naive[1] / memory[1] > 10
    path = jd.sample_path(rational, solver, jd.grids.by_time(VP, 5), x, KEY, remat=True)[1]
    np.testing.assert_allclose(path, jd.sample_path(rational, solver, jd.grids.by_time(VP, 5), x, KEY)[1])
