"""What steers a U-Net: several ControlNets, their scales, and the features of adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import T2IAdapter, UNet, adapted, adapter_of, add_controls, add_features, control_of, controlled

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 8, 8, 1), np.float32)
NOISE = np.float32([10, 700])


def toy(params, x, noise, cond, *, key=None):
    """A ControlNet of arithmetic, whose residuals are of two sizes."""
    assert "features" not in cond
    drawn = 0 if key is None else jax.random.normal(key, ())
    return params * cond["hint"] + drawn, params**2 * cond["hint"][:, ::2]


def sums(params, x, noise, cond, *, key=None):
    """A network that returns what it is given."""
    assert "hint" not in cond
    return params * x, cond["residuals"]


def test_several_controls_add_at_their_scales_which_may_follow_the_level():
    first, second = (rng.standard_normal((2, 4), np.float32) for _ in range(2))
    late = lambda noise: jnp.where(noise < 100, 0.5, 0.0)  # noqa: E731
    apply = controlled(add_controls([toy, toy], [late, jnp.float32([2, 3])]), sums)
    params = {"controlnet": (np.float32(2), np.float32(5)), "unet": np.float32(7)}
    cond = {"hint": (first, second), "features": ()}
    x, (a, b) = apply(params, X, NOISE, cond)
    on = np.float32([[0.5], [0]])
    np.testing.assert_allclose(x, 7 * X)
    np.testing.assert_allclose(a, on * 2 * first + 2 * 5 * second, rtol=1e-6)
    np.testing.assert_allclose(b, on * 4 * first[:, ::2] + 3 * 25 * second[:, ::2], rtol=1e-6)
    # As one with one, and with a common scale around it.
    plain = controlled(toy, sums, late)(params | {"controlnet": np.float32(2)}, X, NOISE, {"hint": first})
    alone = params | {"controlnet": (np.float32(2),)}
    several = controlled(add_controls([toy]), sums, late)(alone, X, NOISE, {"hint": (first,)})
    jax.tree.map(np.testing.assert_array_equal, plain, several)
    # Each draws its own dropout.
    _, (noised, _) = apply(params, X, NOISE, {"hint": (0 * first, 0 * first)}, key=jax.random.key(0))
    alike = apply(params, X, NOISE, {"hint": (0 * first, 0 * first)}, key=jax.random.key(0))[1][0]
    np.testing.assert_array_equal(noised, alike)
    assert np.abs(noised[0, 0] - noised[1, 0]) > 1e-3  # of the late one the first example alone


def test_mistakes():
    with pytest.raises(ValueError, match="a scale for each, got 2 and 1 scales"):
        add_controls([toy, toy], [1.0])
    with pytest.raises(ValueError, match="a scale for each, got 0"):
        add_controls([])
    with pytest.raises(ValueError, match="2 ControlNets take as many parameters and hints, got 2 and 1"):
        add_controls([toy, toy])((1, 2), X, NOISE, {"hint": (X,)})
    with pytest.raises(ValueError, match="one number or 2, one per example, got shape"):
        controlled(toy, sums, lambda noise: jnp.ones(3))({"controlnet": 1, "unet": 1}, X, NOISE, {"hint": X})
    with pytest.raises(ValueError, match="a scale for each adapter, got 1 and 2"):
        add_features([(X,)], [1, 2])
    with pytest.raises(ValueError, match="'full', 'xl' or 'light', got 'wide'"):
        jax.eval_shape(lambda: T2IAdapter(kind="wide").init(jax.random.key(0), X))
    shapes = [(2, 8, 8, 4), (2, 3, 3, 6)]
    with pytest.raises(ValueError, match=r"features are one for each level.*got \(2, 3, 3, 6\) for level 1"):
        features = [np.zeros(shape, np.float32) for shape in shapes]
        jax.eval_shape(lambda: BASE.init(jax.random.key(0), X, NOISE, {"features": features}))


def test_features_add_at_their_scales():
    one, other = ((X, X[:, :4]), (2 * X, 3 * X[:, :4]))
    for got, want in zip(add_features([one, other], [2.0, jnp.float32(0.5)]), (3 * X, 3.5 * X[:, :4]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    seen = lambda params, x, noise, cond, *, key=None: cond["features"]  # noqa: E731
    got = adapted(seen, lambda noise: noise / 10)(None, X, NOISE, {"features": one})
    np.testing.assert_allclose(got[1], np.float32([1, 70])[:, None, None, None] * X[:, :4], rtol=1e-6)


BASE = UNet(widths=(4, 6), num_blocks=1, mid_attention=False, mid_blocks=1, groups=2, resample="pool")
HINT = {"hint": rng.random((2, 8, 8, 3), np.float32)}


def randomized(tree):
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda a: np.float32(0.3 * draw(a.shape)), tree)


@pytest.mark.slow
def test_new_ones_and_a_scale_of_0_are_the_base_bit_for_bit():
    """One program: what steers is given as parameters, and as scales."""
    unet, control, adapter = networks.as_apply(BASE), control_of(BASE), adapter_of(BASE)
    shapes = jax.eval_shape(lambda key: networks.init(BASE, key, X), jax.random.key(0))
    base = randomized(shapes)
    new = networks.copy_encoder(networks.init(control, jax.random.key(0), X, HINT), base)
    fresh = jax.jit(adapter.init)(jax.random.key(0), HINT["hint"])

    @jax.jit
    def steered(new, fresh, scale):
        features = adapter.apply(fresh, HINT["hint"])
        both = controlled(networks.as_apply(control), adapted(unet, scale), scale)
        return both({"controlnet": new, "unet": base}, X, NOISE, HINT | {"features": features})

    off = steered(randomized(new), randomized(fresh), np.float32(0))
    plain = jax.jit(unet)(base, X, NOISE)
    np.testing.assert_allclose(off, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(steered(new, fresh, np.float32(1)), off)
    np.testing.assert_array_equal(steered(randomized(new), fresh, np.float32(0)), off)
    for other in (steered(randomized(new), fresh, np.float32(1)), steered(new, randomized(fresh), np.float32(1))):
        assert np.abs(other - off).max() > 1e-2
