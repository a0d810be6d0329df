import functools

import jax
import jax.numpy as jnp
import pytest
from helpers import toy
from jax.sharding import PartitionSpec as P

from jaxdiff import train


@functools.cache
def created(where="one"):
    mesh = toy.mesh(where)
    return mesh, train.init_state(toy.init, toy.ADAMW, jax.random.key(0), mesh)


@pytest.mark.parametrize("where", ["fsdp", "mixed"])
def test_born_sharded(where):
    mesh, state = created(where)
    fsdp = mesh.shape["fsdp"]
    adam = state.opt[1][0]
    for tree in (state.params, state.ema, adam.mu["large"], adam.nu["large"]):
        kernel = tree["hidden"]["kernel"]
        assert {s.data.shape for s in kernel.addressable_shards} == {(toy.WIDTH, toy.HIDDEN // fsdp)}
    for tree in (state.params, state.ema):
        assert {s.data.shape for s in tree["hidden"]["bias"].addressable_shards} == {(toy.HIDDEN,)}
    for small in (adam.mu["small"]["float32"], adam.nu["small"]["float32"]):
        assert small.sharding.is_fully_replicated
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
    described = train.state_shapes(toy.init, toy.ADAMW, mesh)
    assert jax.tree.structure(described) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_factored_moments_lie_where_the_rule_says():
    """Means over rows and over columns: a matrix for each layer of a stack, vectors, and stand-ins of one number."""
    mesh = train.make_mesh(fsdp=4, tensor=2)
    shapes = {"blocks.*": {"to_out.0": {"kernel": (2, 512, 4096)}}, "out": {"kernel": (256, 8192), "bias": (8192,)}}
    init = lambda key: jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    described = train.state_shapes(init, train.adafactor(1e-3), mesh)
    assert described.params["blocks.*"]["to_out.0"]["kernel"].sharding.spec == P(None, "tensor", "fsdp")
    _, factored, _, momentum, *_ = described.opt
    places = {x.shape: x.sharding.spec for x in jax.tree.leaves(factored)}
    assert places == {shape: P() for shape in [(), (1,), (2, 512), (2, 4096), (256,), (8192,)]}
    for moment, param in zip(jax.tree.leaves(momentum.ema), jax.tree.leaves(described.params), strict=True):
        assert (moment.sharding, moment.dtype) == (param.sharding, jnp.bfloat16)


DECAYS = (train.ema.power(0.05), train.ema.power(0.1))


def test_as_many_averages_as_decays():
    mesh = toy.mesh("mixed")
    state = train.init_state(toy.init, toy.ADAMW, jax.random.key(0), mesh, ema=DECAYS)
    first, second = state.ema
    assert toy.same(first, state.params) and toy.same(second, state.params)
    leaves = jax.tree.leaves((state.params, state.ema))
    pointers = [shard.data.unsafe_buffer_pointer() for leaf in leaves for shard in leaf.addressable_shards]
    assert len(pointers) == len(set(pointers))
    described = train.state_shapes(toy.init, toy.ADAMW, mesh, ema=DECAYS)
    assert jax.tree.map(lambda x: x.sharding, described) == jax.tree.map(lambda x: x.sharding, state)
    adopted = train.state_from_params(jax.jit(toy.init)(jax.random.key(0)), toy.ADAMW, mesh, ema=DECAYS)
    assert toy.same(adopted, state)
    assert toy.same(train.ema_params(state), first)


def test_averages_in_the_hosts_memory():
    mesh = toy.mesh("mixed")
    arguments = {"ema": DECAYS, "ema_memory": "pinned_host"}
    state = train.init_state(toy.init, toy.ADAMW, jax.random.key(0), mesh, **arguments)
    described = train.state_shapes(toy.init, toy.ADAMW, mesh, **arguments)
    adopted = train.state_from_params(jax.jit(toy.init)(jax.random.key(0)), toy.ADAMW, mesh, **arguments)
    for made in (state, described, adopted):
        assert {x.sharding.memory_kind for x in jax.tree.leaves(made.ema)} == {"pinned_host"}
        assert {x.sharding.memory_kind for x in jax.tree.leaves(made.params)} == {"device"}
    on_device = train.ema_params(state)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(on_device)} == {"device"}
    assert toy.same(on_device, state.params)


def test_memory_that_is_not_there():
    with pytest.raises(ValueError, match=r"memory of cpu: device, pinned_host.*got 'moon'"):
        train.state_shapes(toy.init, toy.ADAMW, toy.mesh("one"), ema_memory="moon")
