"""EDM2: published sizes, unit magnitudes, and weights whose length does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import EDM2UNet
from jaxdiff.networks.edm2 import Block
from jaxdiff.networks.magnitude import mp_cat, mp_silu, mp_sum, normalize

TINY = {"resolution": 8, "widths": (64, 128), "num_blocks": 1, "attention": (4,), "num_classes": 4, "log_variance": 16}
LABEL = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}


@pytest.mark.slow
def test_published_parameter_counts():
    """Trained with its uncertainty, whose 128 weights are not counted in millions; frequencies are buffers there."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)

    def count(size):
        module = networks.edm2(size)
        tree = jax.eval_shape(lambda key: networks.init(module, key, x, LABEL), jax.random.key(0))
        return sum(a.size for a in jax.tree.leaves(tree))

    published = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}
    modules = {size: networks.edm2(size) for size in published}
    width = {size: module.widths[0] for size, module in modules.items()}
    # But for their width they are one network (and dropout, which has no parameters), so that the count is a
    # polynomial of the second degree in it: three sizes give all.
    one = modules["xs"]
    assert all(m.widths == tuple(w * width[size] // 128 for w in one.widths) for size, m in modules.items())
    assert all(m.clone(widths=one.widths, dropout=one.dropout) == one for m in modules.values())
    some = ("xs", "m", "xxl")
    polynomial = np.polyfit([width[size] / 128 for size in some], [count(size) for size in some], 2)
    assert {size: round(np.polyval(polynomial, width[size] / 128) / 1e6) for size in published} == published


def test_unknown_size():
    with pytest.raises(ValueError, match="size must be one of xs, s, m, l, xl, xxl, got 'tiny'"):
        networks.edm2("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 64}, r"head_dim must divide the widths with attention, got 64 for \[16\]"),
        ({"head_dim": 8, "resample_filter": (1.0,)}, r"resample_filter must be an even number of them, got \(1.0,\)"),
        ({"head_dim": 8, "attention": (16,)}, r"attention names sizes out of \[8\], got \(16,\)"),
    ],
)
def test_unknown_options(changes, message):
    module = networks.EDM2UNet(**{"resolution": 8, "widths": (16,), "num_blocks": 1, "attention": (8,)} | changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def rms(x):
    return float(jnp.sqrt(jnp.square(x).mean()))


@pytest.mark.slow
def test_parts_preserve_magnitude():
    a, b = normal(0, 4096, 8), normal(1, 4096, 24)
    assert abs(rms(mp_silu(a)) - 1) < 0.02
    for t in (0.3, 0.5, 0.9):
        assert abs(rms(mp_sum(a, b[:, :8], t)) - 1) < 0.02
        both = mp_cat(a, b, t)
        assert abs(rms(both) - 1) < 0.02
        # The contributions' ratio is t's, whatever the numbers of channels.
        ratio = float(jnp.square(both[:, 8:]).sum() / jnp.square(both[:, :8]).sum())
        np.testing.assert_allclose(ratio, (t / (1 - t)) ** 2, rtol=0.05)


@pytest.mark.slow
def test_normalize():
    x = normal(0, 3, 5, 7) * 9
    np.testing.assert_allclose(jnp.square(normalize(x, (0, 1))).mean((0, 1)), 1, rtol=1e-3)
    grad = jax.grad(lambda a: normalize(a, (0, 1)).sum())(jnp.zeros((2, 2, 2)))
    assert np.isfinite(grad).all()


def drawn(module, x, label):
    """Initial parameters with the gains that training would find, in numpy: nothing to compile."""
    tree = jax.eval_shape(lambda key: networks.init(module, key, x, {"label": label}), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, a):
        value = rng.standard_normal(a.shape)
        return np.asarray(1.0 if path[-1].key == "out_gain" else 0.0 if a.ndim == 0 else value, np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


@pytest.mark.slow
def test_activations_have_unit_magnitude_at_initialization():
    # Enough channels out that their number of weights makes an expectation of a draw.
    module = EDM2UNet(**TINY, out_channels=64)
    x, noise, label = normal(0, 8, 8, 8, 3), normal(1, 8), jnp.arange(8) % 4
    params = drawn(module, x, label)

    @jax.jit
    def evaluate(params):
        blocks = lambda module, method: isinstance(module, Block) and method == "__call__"  # noqa: E731
        return module.apply({"params": params}, x, noise, {"label": label}, capture_intermediates=blocks)

    y, seen = evaluate(params)
    blocks = {name: value["__call__"][0] for name, value in seen["intermediates"].items()}
    assert len(blocks) == 10
    for name, h in blocks.items():
        assert 0.8 < rms(h) < 1.2, (name, rms(h))
    assert 0.8 < rms(y) < 1.2


@pytest.mark.slow
def test_the_length_of_weights_changes_nothing():
    module = EDM2UNet(**TINY)
    x, noise, label = normal(0, 2, 8, 8, 3), normal(1, 2), jnp.array([1, 4])
    params = drawn(module, x, label)

    def scale(path, a):
        return a * (1 + len(path[0].key) % 5) if path[-1].key == "kernel" else a

    longer = jax.tree_util.tree_map_with_path(scale, params)

    def error(params):
        y = networks.as_apply(module)(params, x, noise, {"label": label})
        return jnp.square(y - x).sum(), y

    both = jax.jit(jax.grad(error, has_aux=True))
    want = both(params)[1]
    np.testing.assert_allclose(both(longer)[1], want, atol=2e-3)
    forced = jax.jit(networks.force_weight_norm)(longer)
    grads, y = both(forced)
    np.testing.assert_allclose(y, want, atol=2e-3)

    # So the gradient is orthogonal to each output channel's weights, and constants have none.
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        w = forced[path[0].key]
        for key in path[1:]:
            w = w[key.key]
        axes = tuple(range(g.ndim - 1))
        if path[-1].key == "kernel":
            cosine = np.abs((g * w).sum(axes)) / (np.linalg.norm(g.ravel()) * np.linalg.norm(np.ravel(w)) + 1e-9)
            assert cosine.max() < 1e-3, path
        elif path[-1].key in ("freqs", "phases"):
            np.testing.assert_array_equal(g, 0)


@pytest.mark.slow
def test_forced_weight_norm():
    tree = {"conv": {"kernel": 7 * normal(0, 3, 3, 5, 4)}, "emb_gain": jnp.float32(2.0), "f": {"freqs": normal(1, 6)}}
    forced = networks.force_weight_norm(tree)
    np.testing.assert_allclose(jnp.square(forced["conv"]["kernel"]).mean((0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_array_equal(forced["f"]["freqs"], tree["f"]["freqs"])
    assert forced["emb_gain"] == 2.0
    again = networks.force_weight_norm(forced)["conv"]["kernel"]
    np.testing.assert_allclose(again, forced["conv"]["kernel"], rtol=1e-3)


@pytest.mark.slow
def test_the_log_variance_is_a_function_of_its_own_parameters():
    params = {
        "logvar_fourier": {"freqs": jnp.array([1.0, 2.0]), "phases": jnp.array([0.5, 0.0])},
        "logvar_linear": {"kernel": jnp.array([[3.0], [4.0]])},
    }
    noise = np.array([0.3, -0.7])
    # The weights' mean square is 12.5; divided by the root of their number they are 3/5 and 4/5.
    want = np.sqrt(2) * (0.6 * np.cos(noise + 0.5) + 0.8 * np.cos(2 * noise))
    np.testing.assert_allclose(networks.log_variance(params, jnp.asarray(noise, jnp.float32)), want, rtol=1e-3)
