"""Many levels in one call: parallel in time, and streams; each is `sample`, example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB

import jaxdiff as jd

N, B = 24, 3
LEVELS = jd.grids.by_time(jd.processes.VP(), N)
OTHER_LEVELS = jd.grids.by_time(jd.processes.Flow(), N)
KEYS = jax.random.split(jax.random.key(0), B)
X = np.random.default_rng(0).normal(size=(B, BLOB.means.shape[1]))
SOLVERS = {"ddim": jd.solvers.ddim(), "ddpm": jd.solvers.ddim(1.0), "heun": jd.solvers.heun()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["ddim", "ddpm", pytest.param("heun", marks=pytest.mark.slow)])
def test_parallel_is_sequential(name):
    """To rounding with tolerance 0, in at most N rounds; within a multiple of the tolerance, in a fraction of them."""
    solver, x = SOLVERS[name], jnp.asarray(X)
    expected = jd.sample(BLOB.denoise, solver, LEVELS, x, KEYS)
    traced = []

    @jax.jit
    def parallel(x, keys, levels, tolerance):
        traced.append(1)
        return jd.sample_parallel(BLOB.denoise, solver, levels, x, keys, window=10, tolerance=tolerance)

    y, rounds = parallel(x, KEYS, LEVELS, 0.0)
    np.testing.assert_allclose(y, expected, atol=1e-13)
    assert np.all(rounds <= N)
    y, fewer = parallel(x, KEYS, LEVELS, 1e-4)
    np.testing.assert_allclose(y, expected, atol=1e-3)
    assert np.all(fewer < rounds) and np.abs(y - expected).max() > 0
    if not solver.stochastic:
        assert np.all(fewer <= N // 2)
    # Examples in another order are the same to the bit, though they need other numbers of rounds.
    order = jnp.asarray([2, 0, 1])
    shuffled, _ = parallel(x[order], KEYS[order], LEVELS, 1e-4)
    np.testing.assert_array_equal(shuffled, y[order])
    other = parallel(x.at[1].set(20.0), KEYS, LEVELS, 1e-4)[0]
    np.testing.assert_array_equal(other[0], y[0])
    # Neither the tolerance nor the grid compiles anew.
    expected = jd.sample(BLOB.denoise, solver, OTHER_LEVELS, x, KEYS)
    np.testing.assert_allclose(parallel(x, KEYS, OTHER_LEVELS, 0.0)[0], expected, atol=1e-13)
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_an_example_is_its_own_also_where_another_takes_longer():
    """A Gaussian far from the prior takes other rounds than one close to it: neither changes the other."""

    def denoise(x, level):  # example 0 has almost constant data, example 1 data like the prior
        alpha, sigma = level.expand_to(x)[1:]
        var = jnp.asarray([1e-4, 1.0])[:, None]
        return alpha * var * x / (alpha**2 * var + sigma**2)

    run = lambda x: jd.sample_parallel(denoise, jd.solvers.ddim(), LEVELS, x, KEYS[0], window=N, tolerance=1e-3)  # noqa: E731
    x = jnp.asarray(X[:2])
    y, rounds = run(x)
    assert rounds[0] != rounds[1]
    for i, far in ((0, x.at[1].multiply(100)), (1, x.at[0].multiply(100))):
        np.testing.assert_array_equal(run(far)[0][i], y[i])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_window_is_split_over_devices():
    mesh = jd.train.make_mesh()
    run = lambda axis: jax.jit(  # noqa: E731
        lambda x: jd.sample_parallel(
            BLOB.denoise, jd.solvers.ddim(), LEVELS, x, KEYS, window=16, tolerance=1e-4, axis=axis
        )
    )
    x = jnp.asarray(X)
    expected = run(None)(x)
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with jd.sharding.use_mesh(mesh):
        compiled = run("data").lower(x).compile()
        text, got = compiled.as_text(), compiled(x)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-12)
    np.testing.assert_array_equal(got[1], expected[1])
    assert "f64[2,3,2]" in text  # a device's part of the window, [16 / 8, B, d]


@pytest.mark.slow
def test_parallel_follows_the_same_brownian_path():
    x, levels = jnp.asarray(X, jnp.float32), LEVELS.at(slice(None, None, 6))
    solver = jd.solvers.ddim(1.0, noise_sampler=jd.noise.brownian(KEYS))
    parallel = jax.jit(lambda x: jd.sample_parallel(BLOB.denoise, solver, levels, x, KEYS, window=2, tolerance=0.0)[0])
    sequential = jax.jit(lambda x: jd.sample(BLOB.denoise, solver, levels, x, KEYS))
    np.testing.assert_allclose(parallel(x), sequential(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [pytest.param("ddim", marks=pytest.mark.slow), "ddpm"])
def test_a_stream_is_sample_for_each_picture(name):
    """Each picture with a condition of its own: where it is drawn towards."""
    levels, solver, n = LEVELS.at(slice(None, None, 6)), SOLVERS[name], 4
    denoise_of = lambda cond: lambda x, level: BLOB.denoise(x - cond["shift"], level) + cond["shift"]  # noqa: E731
    shifts, keys = jnp.arange(6.0)[:, None], jax.random.split(jax.random.key(1), 6)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 1)))
    x = jnp.broadcast_to(x, (6, BLOB.means.shape[1])) + 0.0
    expected = jd.sample(denoise_of({"shift": shifts}), solver, levels, x, keys)
    start, push = jd.stream(denoise_of, solver, levels)
    push = jax.jit(push)
    state, done = start(x[0], keys[0], {"shift": shifts[0]}), []
    for i in [*range(6), *[5] * (n - 1)]:
        state, picture = push(state, x[i], keys[i], {"shift": shifts[i]})
        done.append(picture)
    np.testing.assert_allclose(np.stack(done[n - 1 :]), expected, atol=1e-14)
    assert push._cache_size() == 1


@pytest.mark.usefixtures("x64")
def test_a_gradient_gets_a_level_for_each_example():
    def gradient(x, level):
        return jax.grad(lambda x: jnp.sum(level.alpha * jnp.sum(jnp.sin(x), axis=1)))(x)

    solver, levels, x = jd.solvers.ddpm(gradient=gradient), jd.grids.by_time(jd.processes.VP(), 5), jnp.asarray(X)
    expected = jd.sample(BLOB.denoise, solver, levels, x, KEYS)
    y, _ = jax.jit(lambda x: jd.sample_parallel(BLOB.denoise, solver, levels, x, KEYS, window=3, tolerance=0.0))(x)
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_predictions_that_pure_noise_does_not_determine_are_refused():
    denoise, x = jd.denoiser(lambda p, x, n, c: x, None, jd.parameterize.eps), jnp.asarray(X, jnp.float32)
    with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
        jd.sample_parallel(denoise, jd.solvers.ddim(), OTHER_LEVELS, x, KEYS, window=4)
    start, push = jd.stream(lambda cond: denoise, jd.solvers.ddim(), OTHER_LEVELS)
    with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
        jax.jit(push)(start(x[0], KEYS[0], {}), x[0], KEYS[0], {})


def test_mistakes():
    x, whole = jnp.asarray(X, jnp.float32), jd.inverse.operators.mask(jnp.ones(X.shape[1]))
    for options, words in (
        ({"solver": jd.solvers.dpmpp_2m()}, r"dpmpp_2m\(\).* remembers earlier steps"),
        ({"solver": jd.solvers.restart()}, "a restart does not take examples at levels of their own"),
        ({"solver": jd.inverse.replace(jd.solvers.ddim(), whole, x, resample=1)}, "of inverse.replace resample=0"),
        ({"solver": jd.solvers.ddim(1.0), "key": KEYS[0]}, "give one key for each example"),
        ({"window": 0}, "window must be a number of steps, from 1 to the grid's 24, got 0"),
        ({"window": 25}, "got 25"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"solver": jd.solvers.ddim}, "solver must be a Solver"),
        ({"denoise": lambda x, level: x[..., :1]}, "must return x0_hat of the shape of x"),
        ({"denoise": lambda x, level: (x, x)}, r"denoise returns \(x0_hat, frac\)"),
    ):
        given = {"solver": jd.solvers.ddim(), "levels": LEVELS, "x": x, "key": KEYS, "window": np.int64(4)} | options
        with pytest.raises(ValueError, match=words):
            jd.sample_parallel(**{"denoise": BLOB.denoise} | given)
    jax.eval_shape(
        lambda x: jd.sample_parallel(BLOB.denoise, jd.solvers.ddim(), LEVELS, x, KEYS, window=np.int64(4)), x
    )
