"""Small arrays of a tree as one: the same numbers, in fewer arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import train
from jaxdiff.train import packing

RNG = np.random.default_rng(0)
TREE = {
    "conv": {"bias": RNG.normal(size=3), "kernel": RNG.normal(size=(3, 3, 32, 64))},
    "norm": {"scale": RNG.normal(size=(5,)), "count": np.arange(4)},
}


def _leaves(tree):
    return jax.tree.leaves(tree)


@pytest.fixture
def tree(x64):
    return jax.tree.map(jnp.asarray, TREE)


@pytest.fixture
def promoting():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_small_arrays_of_each_dtype_lie_in_one(tree):
    packed = packing.pack(tree)
    assert {name: array.shape for name, array in packed["small"].items()} == {"float64": (8,), "int64": (4,)}
    assert [x.shape for x in _leaves(packed["large"])] == [(3, 3, 32, 64)]
    back = packing.unpack(packed, tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_an_optimizer_moves_packed_arrays_like_separate_ones(x64, promoting):
    params = jax.tree.map(jnp.asarray, {"conv": TREE["conv"], "scale": TREE["norm"]["scale"]})
    plain = optax.adamw(0.1, weight_decay=0.3)
    ours = packing.packed(plain)
    states = plain.init(params), ours.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda x, step=step: jnp.sin(x + step), params)
        (wanted, first), (made, second) = plain.update(grads, states[0], params), ours.update(grads, states[1], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), made, wanted)
        states = first, second
    assert len(_leaves(states[1][0].mu)) == 2 < len(_leaves(states[0][0].mu))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_norm_is_that_of_all_numbers(sharded, x64):
    floats = jax.tree.map(jnp.asarray, {"conv": TREE["conv"], "scale": TREE["norm"]["scale"]})
    wanted = np.linalg.norm(np.concatenate([np.ravel(x) for x in _leaves(floats)]))
    norm = packing.norm
    if sharded:
        from jaxdiff.sharding import make_mesh, shard_params, use_mesh

        mesh = make_mesh(fsdp=4, devices=jax.devices()[:4])
        floats = jax.device_put(floats, shard_params(floats, mesh))

        def norm(tree):
            with use_mesh(mesh):
                return packing.norm(tree)

    assert jax.jit(norm)(floats) == pytest.approx(wanted, rel=1e-12)


def test_the_norm_of_no_arrays_is_0():
    assert packing.norm({"nothing": None}) == 0


def test_gradients_of_another_dtype_are_cast(promoting):
    params = {"bias": jnp.ones(3)}
    optimizer = packing.packed(optax.adamw(0.1))
    updates, _ = optimizer.update({"bias": jnp.ones(3, jnp.bfloat16)}, optimizer.init(params), params)
    assert updates["bias"].dtype == jnp.float32


def test_clipping_to_a_norm_keeps_smaller_gradients_and_the_direction_of_larger_ones(x64):
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    for largest, scale in ((10.0, 1.0), (1.0, 0.2)):
        made, _ = packing.clip_by_norm(largest).update(grads, optax.EmptyState())
        jax.tree.map(lambda a, b, scale=scale: np.testing.assert_allclose(a, scale * b, rtol=1e-12), made, grads)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    made, _ = packing.clip_by_norm(1.0).update(zeros, optax.EmptyState())
    assert not any(x.any() for x in _leaves(made))


def test_adamw_is_optax_adamw_with_clipping(x64, promoting):
    params = jax.tree.map(jnp.asarray, {"conv": TREE["conv"], "scale": TREE["norm"]["scale"]})
    grads = jax.tree.map(jnp.cos, params)
    plain = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, b2=0.999, weight_decay=0.2))
    ours = train.adamw(0.1, clip_norm=0.5, weight_decay=0.2)
    wanted, _ = plain.update(grads, plain.init(params), params)
    made, _ = ours.update(grads, ours.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), made, wanted)
