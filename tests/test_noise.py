"""Noise: its moments, that an example's noise is its key's alone, and Brownian paths."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS
from helpers.optimized import OPTIMIZED
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import noise

KEYS = jax.random.split(jax.random.key(5), 6)
LEVELS = jd.Level(*np.float32([[1, 0.5, 0], [0.1, 0.8, 1], [0.9, 0.6, 0]]))


def test_is_standard_normal_and_independent():
    z = np.asarray(noise.normal_like(jax.random.split(jax.random.key(0), 500), jnp.zeros((500, 20, 10))), np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n) and abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[:, :, 1:], z[:, :, :-1])):
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


def test_one_key_for_all_is_jaxs_normal():
    x = jnp.zeros((6, 4, 3))
    np.testing.assert_array_equal(noise.normal_like(KEYS[0], x), jax.random.normal(KEYS[0], x.shape))


def test_one_key_per_example_is_that_example_alone():
    z = noise.normal_like(KEYS, jnp.zeros((6, 4, 3)))
    for i in (0, 4):
        np.testing.assert_array_equal(z[i], jax.random.normal(KEYS[i], (4, 3)))
    chosen = jnp.array([5, 2])
    np.testing.assert_array_equal(noise.normal_like(KEYS[chosen], jnp.zeros((2, 4, 3))), z[chosen])


def test_different_keys_and_different_steps_give_different_noise():
    x = jnp.zeros((6, 4, 3))
    z = noise.normal_like(KEYS, x)
    assert len(np.unique(z)) == z.size
    for key in (KEYS, KEYS[0]):
        folded = [noise.normal_like(noise.fold_in(key, i), x) for i in range(2)]
        assert not np.any(folded[0] == folded[1]) and not np.any(folded[0] == noise.normal_like(key, x))
    np.testing.assert_array_equal(
        jax.random.key_data(noise.fold_in(KEYS, 3)[2]), jax.random.key_data(jax.random.fold_in(KEYS[2], 3))
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_has_the_type_and_shape_of_x(dtype, x64):
    for key in (KEYS[0], KEYS):
        z = jax.eval_shape(noise.normal_like, key, jax.ShapeDtypeStruct((6, 3), dtype))
        assert z.dtype == dtype and z.shape == (6, 3)
        x = jax.eval_shape(lambda key: noise.prior(LEVELS, key, (6, 3), dtype), key)
        assert x.dtype == dtype and x.shape == (6, 3)


@pytest.mark.parametrize("wrong", [jax.random.PRNGKey(0), 0, np.zeros(2, np.uint32), None, KEYS.reshape(2, 3)])
def test_what_is_no_typed_key_is_refused(wrong):
    x = jnp.zeros((2, 3))
    for use in (
        lambda: noise.check_key(wrong),
        lambda: noise.normal_like(wrong, x),
        lambda: noise.prior(LEVELS, wrong, (2, 3)),
        lambda: jd.sample(lambda x, level: x, jd.solvers.euler(), LEVELS, x, wrong),
    ):
        with pytest.raises(ValueError, match=r"jax\.random\.key\(seed\)"):
            use()


def test_as_many_keys_as_examples():
    for shape in ((5, 2), ()):
        with pytest.raises(ValueError, match="one key per example: got 6 keys"):
            noise.normal_like(KEYS, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("levels", "std"),
    [
        (lambda: jd.grids.by_time(jd.processes.VE(0.01, 50.0), 4), 50.0),
        (lambda: jd.grids.karras(jd.processes.EDM(), 4, sigma_min=0.002, sigma_max=80.0), 80.0),
        (lambda: jd.grids.by_time(jd.processes.Flow(), 4), 1.0),
        (lambda: jd.grids.ddpm(jd.processes.Discrete.linear(), 4), 1.0),
    ],
    ids=["ve", "edm", "flow", "ddpm"],
)
def test_the_prior_has_the_noisiest_levels_std(levels, std):
    levels = jax.jit(levels)()
    x = noise.prior(levels, jax.random.key(0), (500, 20, 10))
    assert abs(float(x.std()) / std - 1) < 4 / np.sqrt(2 * x.size) and abs(float(x.mean())) < 4 * std / np.sqrt(x.size)
    one_each = noise.prior(levels, KEYS, (6, 4, 3))
    np.testing.assert_allclose(one_each[2], std * jax.random.normal(KEYS[2], (4, 3)), rtol=1e-4)


# Brownian paths. The clock of a path is the SNR, exp(2 lam).


def level(lam):
    """A level of VP's; lam may be infinite."""
    lam = jnp.asarray(lam)
    return jd.Level(lam, jnp.sqrt(jax.nn.sigmoid(2 * lam)), jnp.sqrt(jax.nn.sigmoid(-2 * lam)))


@jax.jit
def increments(keys, x, lams):
    """Those between neighbouring lams, [N, *x.shape]."""
    draw = noise.brownian(keys)
    return jax.lax.map(lambda pair: draw(keys, x, level(pair[0]), level(pair[1])), (lams[:-1], lams[1:]))


@pytest.mark.slow
def test_increments_of_a_path_are_standard_normal_and_independent():
    n, lams = 20_000, jnp.array([-jnp.inf, -8.0, -2.0, -1.9, 0.0, 0.7, 0.75, 5.0, jnp.inf])
    draw = lambda lams: increments(jax.random.split(jax.random.key(3), n), jnp.zeros((n, 1)), lams)  # noqa: E731
    z = np.asarray(draw(lams), np.float64)[..., 0]
    assert np.all(np.abs(z.mean(1)) < 4.5 / np.sqrt(n))
    assert np.all(np.abs(z.var(1) - 1) < 4.5 * np.sqrt(2 / n))
    assert np.all(np.abs((z**4).mean(1) - 3) < 4.5 * np.sqrt(96 / n))
    assert np.abs(np.corrcoef(z) - np.eye(len(z))).max() < 4.5 / np.sqrt(n)
    # Of a thousand steps, 0.01 each: 0.00005 of lam is not told apart, 0.5 % of a variance, which its neighbours have.
    z = np.asarray(draw(jnp.linspace(0.3137, 0.3937, 9)), np.float64)
    assert abs(np.mean(z**2) - 0.995) < 4.5 * np.sqrt(2 / z.size)
    assert abs(np.mean(z[1:] * z[:-1]) - 0.0025) < 4.5 / np.sqrt(z.size)


@pytest.mark.slow
def test_increments_add_up_along_any_grid(x64):
    """sqrt(tau_c - tau_a) z_ac = sqrt(tau_b - tau_a) z_ab + sqrt(tau_c - tau_b) z_bc, from pure noise on."""
    fine = np.array([-np.inf, -7.3, -2.1, -0.4, 0.33, 1.2, 1.25, 4.0, 8.0])
    x, tau = jnp.zeros((6, 3)), np.exp(2 * fine)
    coarse = np.array([0, 2, 3, 7, 8])
    moved = lambda z, tau: np.asarray(z) * np.sqrt(np.diff(tau))[:, None, None]  # noqa: E731
    path = np.cumsum(moved(increments(KEYS, x, jnp.asarray(fine)), tau), axis=0)
    rough = np.cumsum(moved(increments(KEYS, x, jnp.asarray(fine[coarse])), tau[coarse]), axis=0)
    np.testing.assert_allclose(rough, path[coarse[1:] - 1], rtol=1e-9, atol=1e-12)
    assert not np.allclose(path[0] / np.sqrt(tau[1]), path[1] / np.sqrt(tau[2]), atol=0.5)


@pytest.mark.slow
def test_a_path_is_its_keys_alone_whatever_the_batch_the_device_or_the_type():
    lams = jnp.array([-3.0, -1.0, 2.0])
    x, chosen = jnp.zeros((8, 3)), jnp.array([6, 1])
    keys = jax.random.split(jax.random.key(4), 8)
    z = increments(keys, x, lams)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    close(increments(keys[chosen], x[:2], lams), z[:, chosen])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    close(increments(*jax.device_put((keys, x), NamedSharding(mesh, PartitionSpec("data"))), lams), z)
    assert not np.allclose(z[:, 0], z[:, 1], atol=0.1)
    with jax.enable_x64(True):
        wide = jax.eval_shape(increments, keys, jax.ShapeDtypeStruct((8, 3), jnp.float64), lams)
    assert z.dtype == jnp.float32 and wide.dtype == jnp.float64
    short = increments(keys[0], jnp.zeros(2000, jnp.bfloat16), jnp.array([-jnp.inf, -3.0, 2.0, jnp.inf]))
    assert short.dtype == jnp.bfloat16 and abs(short.astype(jnp.float32).std() - 1) < 5 / np.sqrt(2 * short.size)
    first = increments._cache_size()
    increments(jax.random.split(jax.random.key(9), 8), x + 1, lams + 0.1)
    assert increments._cache_size() == first


@pytest.mark.slow
def test_a_path_has_finite_gradients_from_pure_noise_to_clean_data(x64):
    levels = jd.grids.by_time(jd.processes.Flow(), 3)

    def total(levels):
        draw, x = noise.brownian(KEYS), jnp.zeros((6, 2))
        return jnp.sum(jax.lax.map(lambda i: draw(KEYS, x, levels.at(i), levels.at(i + 1)), jnp.arange(3)))

    value_and_grad = jax.jit(jax.value_and_grad(total))
    value, grads = value_and_grad(levels)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in (grads.alpha, grads.sigma))
    moved = [value_and_grad(levels._replace(sigma=levels.sigma.at[1].add(h)))[0] for h in (1e-7, -1e-7)]
    np.testing.assert_allclose(grads.sigma[1], (moved[0] - moved[1]) / 2e-7, rtol=1e-5)


def test_a_path_needs_a_typed_key():
    with pytest.raises(ValueError, match=r"jax\.random\.key\(seed\)"):
        noise.brownian(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="one key per example: got 6 keys"):
        noise.brownian(KEYS)(KEYS[0], jnp.zeros((5, 2)), level(-1.0), level(1.0))
    with pytest.raises(ValueError, match="one key an example"):
        noise.brownian(KEYS[0])(KEYS[0], jnp.zeros((2, 2)), level([-1.0, 0.0]), level([1.0, 2.0]))


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1), (6, 3), (1, 3, 1), (1, 1, 1), ()])
def test_a_paths_levels_have_any_shape_that_broadcasts(shape):
    draw, x = noise.brownian(KEYS[0] if np.prod(shape) == 1 else KEYS), jnp.zeros((6, 3, 2))
    lam = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert jax.eval_shape(lambda lam: draw(KEYS, x, level(lam), level(lam + 1)), lam).shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 1, 1), (6, 3)])
def test_an_increment_is_that_of_its_own_level_whatever_its_shape(shape):
    x, draw = jnp.zeros((6, 3, 2)), noise.brownian(KEYS)

    @jax.jit
    def drawn(begin):  # and of each of the levels, as a scalar, all of x
        of = lambda lam: draw(KEYS, x, level(lam), level(lam + 1))  # noqa: E731
        return of(begin), jax.lax.map(of, begin.reshape(-1))

    begin = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    z, each = drawn(begin)
    which = np.arange(begin.size).reshape(shape + (1,) * (3 - len(shape)))
    expected = np.take_along_axis(np.asarray(each), np.broadcast_to(which, x.shape)[None], 0)[0]
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


def test_white_noise_is_the_steps_own_whatever_the_levels():
    x = jnp.zeros((6, 3))
    z = noise.white(KEYS, x, level(-jnp.inf), level(0.0))
    np.testing.assert_array_equal(z, noise.normal_like(KEYS, x))
    np.testing.assert_array_equal(z, noise.white(KEYS, x, level(0.0), level(jnp.inf)))


REFINED = {
    "ddpm": jd.solvers.ddpm,
    "ddim": lambda noise_sampler: jd.solvers.ddim(1.0, noise_sampler=noise_sampler),
    "euler_maruyama": jd.solvers.euler_maruyama,
    "reverse_diffusion": jd.solvers.reverse_diffusion,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFINED)
def test_more_steps_follow_the_same_path(name):
    """Strong convergence: where N and 4 N steps end comes closer as N grows; with fresh noise it does not."""
    keys = jax.random.split(jax.random.key(0), 500)
    x, of_path = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32), noise.brownian(keys)

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def run(levels, n, fresh):  # one program for all
        solver = REFINED[name](noise_sampler=lambda *args: jax.lax.cond(fresh, noise.white, of_path, *args))
        return jd.sample(CLUSTERS.denoise, solver, levels, x, keys, stop=n)

    def end(n, fresh):
        levels = jd.grids.by_lambda(jd.processes.VP(), n, start=0.9, end=0.02)
        return run(jax.tree.map(lambda a: np.pad(np.asarray(a), (0, 256 - n), mode="edge"), levels), n, fresh)

    def apart(fresh):
        """How far the ends of n and of 4 n steps are from each other, n = 16 and 64."""
        return np.sqrt(np.mean(np.diff([end(n, fresh) for n in (16, 64, 256)], axis=0) ** 2, axis=(1, 2)))

    path, white = apart(False), apart(True)
    print(name, "one path:", path, "white:", white)
    assert path[1] < 0.6 * path[0] and path[1] < 0.25 * white[1]
