"""A tree cut in two, and arrays that the step takes without training them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import train

TREE = {"a": {"kernel": 1, "bias": 2}, "b.0": {"c": {"kernel": 3}}, "b.1": {"kernel": 4}}


@pytest.mark.parametrize("pattern", ["kernel", r"^b\.", r"\.c\.", "."])
def test_what_is_cut_is_put_together(pattern):
    found, rest = train.partition(TREE, pattern)
    assert train.combine(found, rest) == train.combine(rest, found) == TREE
    assert not set(jax.tree.leaves(found)) & set(jax.tree.leaves(rest))


def test_split_by_path():
    assert train.partition(TREE, r"^b\.\d\.kernel") == (
        {"b.1": {"kernel": 4}},
        {"a": {"kernel": 1, "bias": 2}, "b.0": {"c": {"kernel": 3}}},
    )
    with pytest.raises(ValueError, match="no parameter's path holds 'd'"):
        train.partition(TREE, "d")


@pytest.mark.parametrize("count", [1, 8])
def test_frozen_arrays_are_arguments(count):
    mesh = train.make_mesh(1, count, devices=jax.devices()[:count])
    base = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    frozen = jax.device_put({"w": base}, train.shard_params({"w": base}, mesh))
    assert frozen["w"].sharding.is_fully_replicated == (count == 1)

    def loss(params, key, batch):
        trained, fixed = params
        return jnp.mean((batch @ (fixed["w"] + trained["w"])) ** 2), {}

    sgd = optax.sgd(0.5)
    step = train.make_step(loss, sgd, key=jax.random.key(0), ema=train.ema.constant(0.5), frozen=frozen)
    state = train.state_from_params({"w": jnp.zeros(base.shape)}, sgd, mesh)
    x = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    batch = train.shard_batch(x, mesh)
    # 32 KiB of constants would be more than that in the program's text.
    assert len(step.lower(state, batch).as_text()) < 20_000
    state, _ = step(state, batch)
    want = -0.5 * 2 * x.T @ (x @ base) / (8 * 128)
    np.testing.assert_allclose(state.params["w"], want, atol=1e-5)
    np.testing.assert_allclose(state.ema["w"], want / 2, atol=1e-5)
    np.testing.assert_array_equal(frozen["w"], base)
