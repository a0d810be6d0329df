"""Muon against singular value decompositions, AdamW beside it, and what a mesh makes of both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy

from jaxdiff import train
from jaxdiff.train.muon import orthogonalize


def orthogonal(x):
    """Five rounds on the singular values of a float64 matrix, in units of its norm."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def updates(optimizer, params, gradients):
    """What the optimizer makes of each of some gradients, at parameters that stay."""
    found, state = [], optimizer.init(params)
    step = jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            update, state = step(gradient, state, params)
            found.append(jax.device_get(update))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (32, 32)])
def test_orthogonalized_against_the_svd(shape, x64):
    """Singular vectors stay; values from 0.01 of the norm on end near 1; whatever the scale."""
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = np.geomspace(1e-3, 1.0, min(shape))
    values /= np.linalg.norm(values)
    x = (u * values) @ vt
    for scale in (1e-6, 1.0, 1e6):
        np.testing.assert_allclose(orthogonalize(jnp.asarray(scale * x)), orthogonal(x), atol=1e-10)
    single = orthogonalize(jnp.asarray(x, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, orthogonal(x), atol=2e-3)
    ends = np.diag(u.T @ np.asarray(single, np.float64) @ vt.T)[values > 0.01]
    assert len(ends) > 10 and ends.min() > 0.67 and ends.max() < 1.21
    assert not np.any(orthogonalize(jnp.zeros(shape, jnp.float32)))


def test_by_hand():
    """Nesterov's momentum, orthogonal, with an RMS of 0.2; each layer of a stack by itself; AdamW for the rest."""
    rng, rate, momentum = np.random.default_rng(1), 0.1, 0.9
    shapes = {"conv": {"kernel": (3, 3, 8, 16), "bias": (16,)}, "blocks.*": {"fc": {"kernel": (2, 16, 16)}}}
    shapes |= {"table": {"embedding": (5, 16)}}
    params, *gradients = (
        jax.tree.map(
            lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
        )
        for _ in range(3)
    )
    arguments = {"clip_norm": None, "weight_decay": 0.5}
    update = updates(train.muon(rate, momentum=momentum, **arguments), params, gradients)[1]
    others = updates(train.adamw(rate, **arguments), params, gradients)[1]
    np.testing.assert_allclose(update["conv"]["bias"], others["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(update["table"]["embedding"], others["table"]["embedding"], rtol=1e-5)
    moved = jax.tree.map(lambda u, x: u / -rate - 0.5 * x, update, params)
    ahead = jax.tree.map(lambda a, b: momentum * (momentum * a + b) + b, *gradients)
    pairs = [*zip(moved["blocks.*"]["fc"]["kernel"], ahead["blocks.*"]["fc"]["kernel"], strict=True)]
    pairs += [(tree["conv"]["kernel"].reshape(72, 16) for tree in (moved, ahead))]
    for got, want in pairs:
        np.testing.assert_allclose(got, 0.2 * max(got.shape) ** 0.5 * orthogonal(want), atol=1e-4)
        assert 0.7 < np.sqrt(np.mean(np.square(got))) / 0.2 < 1.2


def test_schedule_and_clipping():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((4,))}
    none, rng = jax.tree.map(jnp.zeros_like, params), np.random.default_rng(0)
    scheduled = train.muon(0.1, warmup_steps=1, steps=3, schedule="linear", weight_decay=0.5)
    rates = [
        [-leaf.ravel()[0] for leaf in jax.tree.leaves(update)] for update in updates(scheduled, params, [none] * 4)
    ]
    np.testing.assert_allclose(rates, np.outer([0, 0.05, 0.025, 0], [1, 1]), atol=1e-7)
    # Momentum shows how large the first gradient was beside the second.
    big, small = (
        {"kernel": size * rng.normal(size=(4, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
        for size in (50, 0.1)
    )
    unit = jax.tree.map(lambda x: x / np.linalg.norm(big["kernel"]), big)
    clipped, free = (
        updates(train.muon(0.1, clip_norm=clip), params, [first, small])[1]["kernel"]
        for clip, first in ((1.0, big), (None, unit))
    )
    np.testing.assert_allclose(clipped, free, atol=1e-6)
    assert np.abs(free - updates(train.muon(0.1, clip_norm=None), params, [big, small])[1]["kernel"]).max() > 1e-3


def test_refused():
    with pytest.raises(ValueError, match=r"named 'kernel'.*got \['w'\]"):
        train.muon(0.1).init({"w": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match="schedule"):
        train.muon(0.1, schedule="cosine")


MUON = train.muon(1e-2, warmup_steps=2, steps=100, schedule="cosine")


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    mesh, state, step = toy.new("mixed", optimizer=MUON)
    abstract = train.state_shapes(toy.init, MUON, mesh)
    first, second = (train.shard_batch(batch, mesh) for _, batch in zip(range(2), toy.batches(), strict=False))
    with train.Checkpointer(tmp_path) as checkpointer:
        state, _ = step(state, first)
        checkpointer.save(state)
        state, _ = step(state, second)
        checkpointer.wait()
        again, _ = step(checkpointer.restore(abstract), second)
    assert toy.same(state, again)


@pytest.mark.slow
def test_eight_devices_equal_one():
    """The momentum lies where its kernel does, the step is donated, and the parameters are the same."""
    states = {}
    for name in ("one", "mixed"):
        mesh, state, step = toy.new(name, optimizer=MUON)
        old = jax.tree.leaves(state)
        for _, batch in zip(range(4), toy.batches(), strict=False):
            state, metrics = step(state, train.shard_batch(batch, mesh))
        assert all(x.is_deleted() for x in old) and float(metrics["loss"]) < 2
        states[name] = state
    momentum = optax.tree.get(states["mixed"].opt, "momentum")
    assert momentum["hidden"]["kernel"].sharding == states["mixed"].params["hidden"]["kernel"].sharding
    assert not momentum["hidden"]["kernel"].sharding.is_fully_replicated
    for a, b in zip(jax.tree.leaves(states["one"].params), jax.tree.leaves(states["mixed"].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
