"""Noise: its moments, and that an example's noise is its key's alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
