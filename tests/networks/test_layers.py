import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from jax.sharding import AbstractDevice, AbstractMesh

from jaxdiff.networks import layers
from jaxdiff.networks.initializers import kernel_init, table_init, unit_uniform


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact_norm(x, groups, eps):
    """Group norm in float64, written from its definition."""
    x = np.asarray(x, np.float64)
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + eps)
    return y.reshape(x.shape)


@pytest.mark.parametrize("shape", [(2, 10, 8), (3, 6, 4, 8), (2, 4, 2, 6, 8)])
def test_group_norm_is_flax_group_norm(shape):
    x = 2 * normal(0, *shape) + 1
    params = {"scale": normal(1, 8), "bias": normal(2, 8)}
    ours, flax = layers.GroupNorm(4, 1e-5), nn.GroupNorm(4, epsilon=1e-5)
    weight = normal(3, *shape)

    def value_and_grad(module):
        def value(params, x):
            y = module.apply({"params": params}, x)
            return (y * weight).sum(), y

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(params, x)

    ((_, got), got_grad), ((_, want), want_grad) = value_and_grad(ours), value_and_grad(flax)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got_grad, want_grad)


def norm(x):
    one, zero = np.ones((1, 8), np.float32), np.zeros((1, 8), np.float32)
    return jax.jit(lambda x: layers.group_norm(x, one, zero, groups=4, eps=1e-5))(x)


@pytest.mark.parametrize("mean", [100.0, -1000.0])
def test_group_norm_keeps_its_digits_at_a_large_mean(mean):
    x = normal(0, 2, 16, 16, 8) + np.float32(mean)
    y = norm(x)
    # The float32 rounding of x itself is worth 6e-8 |mean|; E[x^2] - E[x]^2 would be off by a thousand times that.
    np.testing.assert_allclose(y, exact_norm(x, 4, 1e-5), atol=3e-7 * abs(mean), rtol=0)


def test_group_norm_of_half_precision_is_computed_in_float32():
    x = (normal(0, 2, 16, 16, 8) + 20).astype(jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact_norm(x.astype(jnp.float32), 4, 1e-5), atol=1e-2, rtol=4e-3)


def test_group_norm_of_constant_half_precision_is_finite():
    x = jnp.full((1, 7, 9, 8), 1000.0, jnp.bfloat16)  # the variance of these sums is negative
    y, grads = jax.value_and_grad(lambda x: norm(x).astype(jnp.float32).sum())(x)
    assert np.isfinite(y) and np.isfinite(grads.astype(jnp.float32)).all()


def test_gradients_of_half_precision_are_those_of_float32():
    """By x, gamma and beta: half precision has a formula of its own."""
    x, by = (normal(0, 2, 6, 4, 8) + 3).astype(jnp.bfloat16), normal(1, 2, 6, 4, 8)
    params = {"scale": normal(2, 8), "bias": normal(3, 8)}

    def gradient(x):
        value = lambda params, x: (layers.GroupNorm(4).apply({"params": params}, x).astype(jnp.float32) * by).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1)))(params, x)

    for got, want in zip(*map(jax.tree.leaves, (gradient(x), gradient(x.astype(jnp.float32)))), strict=True):
        error = np.abs(got.astype(jnp.float32) - want).max()
        assert error < 0.01 * np.abs(want).max()


def test_norms_of_no_examples_and_of_parameters_of_two_types():
    params = {"scale": jnp.ones(8, jnp.bfloat16), "bias": jnp.ones(8)}
    for dtype in (jnp.float32, jnp.bfloat16):
        y = layers.GroupNorm(4).apply({"params": params}, jnp.ones((0, 4, 8), dtype))
        assert (y.shape, y.dtype) == ((0, 4, 8), dtype)


def test_group_norm_second_derivative_is_exact(x64):
    x, v = normal(0, 1, 6, 4).astype(np.float64), normal(1, 1, 6, 4).astype(np.float64)
    one, zero = np.ones((1, 4)), np.zeros((1, 4))

    def f(t):
        return jnp.sin(layers.group_norm(x + t * v, one, zero, groups=2, eps=1e-2)).sum()

    slope, h = jax.jit(jax.grad(f)), 1e-5
    np.testing.assert_allclose(jax.jit(jax.grad(slope))(0.0), (slope(h) - slope(-h)) / (2 * h), rtol=1e-7)


def test_group_norm_film_scales_and_shifts_what_was_normalized():
    x, scale, shift = normal(0, 2, 5, 5, 8), normal(1, 2, 8), normal(2, 2, 8)
    module = layers.GroupNorm(4)
    params = {"params": {"scale": normal(3, 8), "bias": normal(4, 8)}}
    apply = jax.jit(module.apply)
    want = apply(params, x) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(apply(params, x, scale, shift), want, rtol=1e-4, atol=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="4 groups for 6 channels"):
        layers.group_norm(jnp.ones((1, 3, 6)), jnp.ones((1, 6)), jnp.zeros((1, 6)), groups=4, eps=1e-5)


@pytest.mark.parametrize(("pad", "stride"), [(None, 1), ((1, 1), 2), ((0, 1), 2)])
def test_conv_is_a_sum_over_neighbours(pad, stride):
    x = normal(0, 2, 8, 3)
    kernel, bias = normal(1, 3, 3, 5), normal(2, 5)
    y = jax.jit(layers.Conv(5, stride=stride, pad=pad).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    left = 1 if pad is None else pad[0]
    padded = np.pad(np.asarray(x), ((0, 0), (left, 1), (0, 0)))
    want = [sum(padded[:, i + k] @ np.asarray(kernel[k]) for k in range(3)) for i in range(0, 8, stride)]
    np.testing.assert_allclose(y, np.stack(want, 1) + np.asarray(bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_conv_adds_an_embedding_at_all_positions(bias, x64):
    x, emb, kernel = (
        normal(i, *shape).astype(np.float64) for i, shape in enumerate([(2, 6, 5, 3), (2, 4), (3, 3, 3, 4)])
    )
    params = {"kernel": kernel, **({"bias": np.arange(4.0)} if bias else {})}
    conv = layers.Conv(4, bias=bias, dtype=jnp.float64)

    def value_and_slopes(run):
        value = lambda params, emb: (jnp.sin(run(params, emb)).sum(), run(params, emb))  # noqa: E731
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params, emb)

    got = value_and_slopes(lambda params, emb: conv.apply({"params": params}, x, emb))
    want = value_and_slopes(lambda params, emb: conv.apply({"params": params}, x) + emb[:, None, None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)


def test_what_is_computed_for_a_gpu_is_the_same(x64):
    """1x1 convolutions, masks that are drawn again, and what is kept apart, with first and second derivatives."""
    params = {
        "conv": {"kernel": normal(0, 1, 1, 3, 8).astype(np.float64), "bias": np.arange(8.0)},
        "norm": {"scale": np.ones(8), "bias": np.arange(8.0)},
    }
    x = normal(1, 2, 4, 4, 3).astype(np.float64)

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = layers.Conv(8, size=1, dtype=jnp.float64, name="conv")(x, x.mean((1, 2)) @ np.ones((3, 8)))
            h = layers.Dropout(0.5, name="dropout")(layers.GroupNorm(4, name="norm")(h))
            return layers.concatenate_channels(jnp.sin(h), h).sum()

    value = lambda x: Layers().apply({"params": params}, x, rngs={"dropout": jax.random.key(0)})  # noqa: E731
    slope = jax.grad(value)
    derivatives = lambda x: (value(x), slope(x), jax.grad(lambda x: jnp.square(slope(x)).sum())(x))  # noqa: E731
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice("GPU", None, "gpu"))):
        program = jax.jit(derivatives).trace(x).lower(lowering_platforms=("cpu",))
    assert "optimization_barrier" in program.as_text()
    got, want = program.compile()(x), jax.jit(derivatives)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), got, want)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_resampling(dims):
    x = normal(0, 2, *(4, 6, 2)[:dims], 3)
    y = jax.jit(layers.upsample)(x)
    assert y.shape == (2, *(2 * n for n in x.shape[1:-1]), 3)
    np.testing.assert_array_equal(y[(slice(None), *(slice(1, None, 2),) * dims)], x)
    np.testing.assert_allclose(jax.jit(layers.downsample)(y), x, rtol=1e-6)


def test_downsample_averages_blocks_of_two():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_patches_fold_and_unfold(dims):
    x = normal(0, 2, *(4, 6, 2)[:dims], 3)
    y = jax.jit(layers.space_to_depth, static_argnums=1)(x, 2)
    assert y.shape == (2, *(n // 2 for n in x.shape[1:-1]), 2**dims * 3)
    np.testing.assert_array_equal(jax.jit(layers.depth_to_space, static_argnums=1)(y, 2), x)
    # Position first, then channel: the corner of each block comes first.
    np.testing.assert_array_equal(y[..., :3], x[(slice(None), *(slice(0, None, 2),) * dims)])


def test_initial_values_are_uniform_and_independent():
    keys = jax.random.split(jax.random.key(0), 4)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: unit_uniform(key, (100, 1000))))(keys), np.float64)
    assert draws.min() > -1 and draws.max() < 1
    n = draws[0].size
    for power, moment, spread in [(1, 0, 1 / 3), (2, 1 / 3, 1 / 5 - 1 / 9), (4, 1 / 5, 1 / 9 - 1 / 25)]:
        np.testing.assert_allclose((draws**power).mean((1, 2)), moment, atol=5 * np.sqrt(spread / n))
    flat = draws.reshape(4, -1)
    pairs = [(flat[0], flat[1]), (flat[2], flat[3])]
    pairs += [(flat[0, :-lag], flat[0, lag:]) for lag in (1, 2, 1000, 32768)]
    for a, b in pairs:
        assert abs((3 * a * b).mean()) < 5 / np.sqrt(a.size)
    counts = np.histogram(flat, bins=1000, range=(-1, 1))[0]
    expected = flat.size / 1000
    assert abs(((counts - expected) ** 2 / expected).sum() - 999) < 5 * np.sqrt(2 * 999)


def test_initial_variances():
    kernel = jax.jit(kernel_init, static_argnums=1)(jax.random.key(0), (3, 3, 64, 32))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * (64 + 32))), rtol=0.02)
    table = jax.jit(table_init, static_argnums=1)(jax.random.key(1), (100, 64))
    np.testing.assert_allclose(table.std(), 1, rtol=0.02)


def test_initial_values_do_not_depend_on_sharding():
    devices = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("a",))
    sharding = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("a"))

    def draw(key):
        return unit_uniform(key, (16, 5))

    key = jax.random.key(0)
    np.testing.assert_array_equal(jax.jit(draw, out_shardings=sharding)(key), jax.jit(draw)(key))


def test_dropout_keeps_the_mean_and_drops_independently():
    module = layers.Dropout(0.3)
    x = 1 + np.abs(normal(0, 100, 50, 20))

    def drop(seed):
        return module.apply({}, x, rngs={"dropout": jax.random.key(seed)})

    y, other = np.asarray(drop(0), np.float64), np.asarray(drop(1))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    for axis in range(x.ndim):  # neighbours along each axis, and the same place under another key
        here, there = np.take(kept, range(1, x.shape[axis]), axis), np.take(kept, range(x.shape[axis] - 1), axis)
        assert abs((here & there).mean() - 0.49) < 5 * np.sqrt(0.49 * 0.51 / here.size)
    assert abs((kept & (other != 0)).mean() - 0.49) < 5 * np.sqrt(0.49 * 0.51 / x.size)
    np.testing.assert_array_equal(y, drop(0))
    np.testing.assert_array_equal(jax.grad(lambda x: module.apply({}, x, rngs={"dropout": jax.random.key(0)}).sum())(x)
                                  != 0, kept)  # fmt: skip
    np.testing.assert_array_equal(module.apply({}, x, train=False), x)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        layers.Dropout(1.0).apply({}, x, rngs={"dropout": jax.random.key(0)})


@pytest.mark.parametrize("axis", range(3))
def test_dropout_does_not_depend_on_sharding(axis):
    devices = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("a",))
    spec = jax.sharding.PartitionSpec(*("a" if i == axis else None for i in range(3)))
    sharding = jax.sharding.NamedSharding(devices, spec)

    def drop(x):
        return layers.Dropout(0.5).apply({}, x, rngs={"dropout": jax.random.key(0)})

    x = normal(0, 4, 8, 12)
    np.testing.assert_array_equal(jax.jit(drop, in_shardings=sharding)(x), jax.jit(drop)(x))


def test_a_parameter_of_another_shape_is_refused():
    layer, x = layers.Dense(3), jnp.ones((1, 2))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert layer.apply({"params": params}, x).shape == (1, 3)
    with pytest.raises(errors.ScopeParamShapeError, match="kernel"):
        layer.apply({"params": params | {"kernel": jnp.ones((2, 1))}}, x)
    with pytest.raises(errors.ScopeParamNotFoundError, match="bias"):
        layer.apply({"params": {"kernel": params["kernel"]}}, x)
