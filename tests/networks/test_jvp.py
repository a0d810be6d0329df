"""Forward-mode derivatives of networks, and gradients of these, against central differences in double precision.

Kernels of attention and convolutions have tests of their own: test_kernels.py, test_convolution.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from jaxdiff import networks, sharding
from jaxdiff.networks import MLP, DiT, UNet, attention

TINY = {"num_blocks": 0, "groups": 4, "next_noise": True, "dtype": jnp.float64}  # few blocks of each kind
ATTENTIVE = UNet((8,), **TINY, head_dim=4, num_classes=3, dropout=0.3, scale_shift=True)
DIT = DiT(width=8, layers=2, num_heads=2, next_noise=True, num_classes=3, dtype=jnp.float64)
CASES = {
    "mlp": MLP(width=8, num_blocks=1, dropout=0.4, num_classes=3, next_noise=True, dtype=jnp.float64),
    "unet": UNet((8, 16), **TINY, mid_blocks=1, mid_attention=False),
    **{f"dit, remat {word}": DIT.clone(remat=word) for word in ("none", "dots", "full")},
}


def prepared(module):
    """(run, (params, x, t, s), directions): f, its derivative by (x, t, s) along them, and that one's gradient."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2) if isinstance(module, MLP) else (2, 4, 4, 3))
    cond = {} if module.num_classes is None else {"label": np.array([1, 2])}
    t, s = np.array([3.0, 7.0]), np.array([1.0, 6.5])
    params = random_weights(lambda key: networks.init(module, key, x, cond | {"next_noise": s}), 0)
    params = jax.tree.map(lambda a: np.float64(a) + 0.2 * rng.normal(size=a.shape), params)
    place = params, x, t, s
    along = jax.tree.map(lambda a: rng.normal(size=np.shape(a)), place)
    weights, apply = rng.normal(size=x.shape), networks.as_apply(module)
    key = jax.random.key(5) if getattr(module, "dropout", 0) else None

    def f(params, x, t, s):
        y = apply(params, x, t, cond | {"next_noise": s}, key=key)
        return jnp.sum(weights * y + 0.1 * y**2)

    def slope(params, x, t, s):
        return jax.jvp(lambda *z: f(params, *z), (x, t, s), along[1:])[1]

    def run(place):
        moved, back = jax.vjp(slope, *place)
        pairs = zip(*map(jax.tree.leaves, (back(1.0), along)), strict=True)
        return f(*place), moved, sum(jnp.vdot(a, b) for a, b in pairs)

    return run, place, along


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_and_its_gradient_are_the_differences(name, x64):
    run, place, along = prepared(CASES[name])
    check(jax.jit(run), place, along)


def check(run, place, along, h=1e-5):
    at = lambda h, d: run(jax.tree.map(lambda a, b: a + h * b, place, d))  # noqa: E731
    still = (jax.tree.map(np.zeros_like, along[0]), *along[1:])
    _, slope, second = run(place)
    (moved, *_), (back, *_) = (at(step, still) for step in (h, -h))
    (_, later, _), (_, before, _) = (at(step, along) for step in (h, -h))
    np.testing.assert_allclose(slope, (moved - back) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(second, (later - before) / (2 * h), rtol=1e-6)
    assert abs(slope) > 1e-3 and abs(second) > 1e-3


@pytest.mark.slow
def test_through_blockwise_attention_of_a_unet(x64, monkeypatch):
    monkeypatch.setattr(attention, "BLOCKWISE_MIN_KEYS", 16)
    monkeypatch.setattr(attention, "KEY_BLOCK", 6)
    run, place, along = prepared(ATTENTIVE.clone(remat="dots"))
    run = jax.jit(run)
    assert "scan" in str(run.trace(place).jaxpr)
    check(run, place, along)


@pytest.mark.slow
def test_on_a_mesh_that_gathers_weights(x64, monkeypatch):
    """No tangent of a parameter passes the gathering's own reverse rule, which has no forward mode."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
    run, place, along = prepared(DIT)
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    placed = jax.device_put(place[0], sharding.shard_params(place[0], mesh)), *place[1:]
    with sharding.use_mesh(mesh):
        run = jax.jit(run)
        assert "custom_vjp" in str(run.trace(placed).jaxpr)
        check(run, placed, along)
