import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P
from train import toy

from jaxdiff import train


@functools.cache
def created(where="one"):
    mesh = toy.mesh(where)
    return mesh, train.create(toy.init, toy.ADAMW, jax.random.key(0), mesh)


@pytest.mark.parametrize("where", ["fsdp", "mixed"])
def test_born_sharded(where):
    mesh, state = created(where)
    fsdp = mesh.shape["fsdp"]
    adam = state.opt[1][0]
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        kernel = tree["hidden"]["kernel"]
        assert {s.data.shape for s in kernel.addressable_shards} == {(toy.WIDTH, toy.HIDDEN // fsdp)}
        assert {s.data.shape for s in tree["hidden"]["bias"].addressable_shards} == {(toy.HIDDEN,)}
    assert state.step.sharding.is_fully_replicated
    assert adam.count.sharding.is_fully_replicated
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(state))


def test_same_numbers_on_every_mesh():
    states = [created(where)[1] for where in toy.MESHES]
    for state in states[1:]:
        assert toy.same(states[0], state)


def test_first_state():
    _, state = created()
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    assert toy.same(state.params, jax.jit(toy.init)(jax.random.key(0)))
    assert toy.same(state.params, state.ema)


@pytest.mark.parametrize("where", ["one", "mixed"])
def test_average_shares_no_buffer_with_the_parameters(where):
    _, state = created(where)
    pointers = [
        shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
    ]
    assert len(pointers) == len(set(pointers))


def test_abstract_describes_what_create_makes():
    mesh, state = created("mixed")
    described = train.abstract(toy.init, toy.ADAMW, mesh)
    assert jax.tree.structure(described) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_optimizer_leaves_of_other_shapes():
    """Adafactor keeps the means over rows and over columns instead of whole moments."""
    factored = optax.adafactor(1e-3, min_dim_size_to_factor=8)
    init = lambda key: {"w": jnp.zeros((64, 8192))}  # noqa: E731
    described = train.abstract(init, factored, toy.mesh("fsdp"))
    places = {x.shape: x.sharding.spec for x in jax.tree.leaves(described.opt)}
    assert places == {(): P(), (1,): P(), (64,): P(), (8192,): P("fsdp")}
