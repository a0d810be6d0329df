"""Parts of a grid: the nearest level, and the grid between two levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, grids

VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()


def edm(*sigmas):
    return EDM(jnp.asarray(sigmas, float))


def test_the_nearest_level_is_nearest_in_lam():
    levels = edm(16.0, 8.0, 1.0, 0.5, 0.0)
    at = jax.jit(lambda sigma: grids.nearest(levels, EDM(sigma)))
    assert [int(at(sigma)) for sigma in (100.0, 16.0, 11.0, 3.0, 2.0, 0.6, 1e-6, 0.0)] == [0, 0, 1, 1, 2, 3, 3, 4]
    flow = grids.by_time(FLOW, 4)  # from pure noise: lam is infinite at both ends
    assert [int(grids.nearest(flow, FLOW(t))) for t in (1.0, 0.99, 0.6, 0.0)] == [0, 1, 2, 4]


def test_a_truncated_grid_has_both_levels_for_its_ends_and_then_repeats():
    levels = edm(16.0, 8.0, 4.0, 2.0, 1.0, 0.0)
    cut = jax.jit(lambda start, end: grids.truncate(levels, start=EDM(start), end=EDM(end)))
    for start, end, expected in (
        (5.0, 1.5, [5, 4, 2, 1.5]),
        (8.0, 2.0, [8, 4, 2]),  # its own levels
        (5.0, 4.5, [5, 4.5]),  # within one step
        (20.0, 0.0, [16, 8, 4, 2, 1, 0]),  # noisier than the grid
        (4.0, 0.3, [4, 2, 1, 0.3]),
    ):
        part, n = cut(start, end)
        assert int(n) == len(expected) - 1
        np.testing.assert_array_equal(part.sigma, np.float32(expected + expected[-1:] * (6 - len(expected))))
        np.testing.assert_array_equal(part.t, part.sigma)
    assert cut._cache_size() == 1
    whole, n = grids.truncate(levels)
    np.testing.assert_array_equal(whole.sigma, levels.sigma)
    assert int(n) == 5
    for end in (None, EDM(0.5)):  # of a grid that repeats its last level, also cleaner than all of it
        part, n = grids.truncate(edm(16.0, 8.0, 4.0, 1.0, 1.0, 1.0), start=EDM(5.0), end=end)
        assert int(n) == 2 and part.sigma.tolist() == [5, 4, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_run_over_the_part_is_a_run_over_the_grid_cut_by_hand():
    levels, key = grids.by_time(FLOW, 5), jax.random.key(0)  # pure noise to clean data
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)

    @jax.jit
    def run(levels, start, end, x):
        part, n = grids.truncate(levels, start=FLOW(start), end=FLOW(end))
        return jd.sample(rational, jd.solvers.heun(), part, x, key, stop=n)

    by_hand = FLOW(jnp.array([0.7, 0.6, 0.4, 0.2, 0.1]))
    expected = jax.jit(lambda levels: jd.sample(rational, jd.solvers.heun(), levels, x, key))(by_hand)
    np.testing.assert_allclose(run(levels, 0.7, 0.1, x), expected, rtol=1e-5, atol=1e-6)
    part, n = grids.truncate(levels, start=FLOW(0.7), end=FLOW(0.1))  # concrete, its last level repeated
    np.testing.assert_allclose(jd.sample(rational, jd.solvers.heun(), part, x, key, stop=n), expected, rtol=1e-5)
    grads = jax.grad(lambda *ends: jnp.sum(run(levels, *ends, x)), argnums=(0, 1))(0.7, 0.1)
    assert np.all(np.isfinite(grads)) and np.all(np.asarray(grads) != 0)


@pytest.mark.slow
def test_integer_times_stay_integers():
    table = jd.processes.Discrete.linear(1000)
    part, n = grids.truncate(grids.ddpm(table, 10), start=table(750))
    np.testing.assert_array_equal(part.t, [750, 700, 600, 500, 400, 300, 200, 100, 0, 0, 0])
    assert part.t.dtype == jnp.int32 and int(n) == 8
    part, _ = grids.truncate(grids.ddpm(table, 10), start=table(613.7))
    np.testing.assert_allclose(part.t[:3], [613.7, 600, 500])
    np.testing.assert_allclose(part.alpha[0], table(613.7).alpha)


def test_ends_in_the_wrong_order_are_refused():
    levels = edm(16.0, 8.0, 1.0)
    for ends, said in (
        ({"start": EDM(1.0)}, "start must be noisier than the grid's last level"),
        ({"end": EDM(20.0)}, "the grid's first level must be noisier than end"),
        ({"start": EDM(3.0), "end": EDM(4.0)}, "start must be noisier than end, got sigma / alpha 3 / 1 and 4 / 1"),
    ):
        with pytest.raises(ValueError, match=said):
            grids.truncate(levels, **ends)
    assert isinstance(grids.truncate(levels, start=EDM(9.0))[0], Level)
