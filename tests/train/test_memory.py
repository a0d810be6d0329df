"""What the step keeps where and in which precision: averages on the host, several updates a dispatch, sums."""

import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy

import jaxdiff as jd
from jaxdiff import networks, train

KEY = jax.random.key(1)
DECAYS = (train.ema.constant(0.9), train.ema.power(0.1))


def made(where, ema=DECAYS[0], memory="device", **options):
    mesh = toy.mesh(where)
    state = train.init_state(toy.init, toy.ADAMW, jax.random.key(0), mesh, ema=ema, ema_memory=memory)
    return mesh, state, train.make_step(toy.noisy_loss, toy.ADAMW, key=KEY, ema=ema, **options)


def run(steps, *arguments, **options):
    """The state after some updates, and the metrics of each."""
    mesh, state, step = made(*arguments, **options)
    count, source, seen = step.steps_per_call, toy.batches(), []
    for _ in range(steps // count):
        batches = list(itertools.islice(source, count))
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches) if count > 1 else batches[0]
        state, metrics = step(state, train.shard_batch(stacked, mesh, axis=int(count > 1)))
        seen.extend(np.ravel(metrics["loss"]))
    assert step.cache_size() == 1
    return state, np.array(seen)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def one_by_one():
    return run(4, "mixed")


@pytest.mark.slow
def test_several_updates_in_a_dispatch_equal_as_many_steps(one_by_one):
    state, losses = run(4, "mixed", steps_per_call=2)
    close(state, one_by_one[0])
    np.testing.assert_allclose(losses, one_by_one[1], rtol=1e-6)
    assert len(set(losses)) == 4 and int(state.step) == 4


@pytest.mark.slow
def test_a_dispatch_of_accumulated_updates(one_by_one):
    state, losses = run(4, "mixed", grad_accum_steps=2)
    other, others = run(4, "mixed", grad_accum_steps=2, steps_per_call=2)
    close(other, state)
    np.testing.assert_allclose(others, losses, rtol=1e-6)
    assert np.abs(losses - one_by_one[1]).max() > 1e-4  # it is other noise


@pytest.mark.slow
def test_an_update_that_is_not_finite_stays_out_of_its_dispatch():
    mesh, state, step = made("one", steps_per_call=3)
    batches = list(itertools.islice(toy.batches(poison=1), 3))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    state, metrics = step(state, train.shard_batch(stacked, mesh, axis=1))
    assert np.isfinite(metrics["loss"]).tolist() == [True, False, True]
    assert (int(state.step), int(state.skipped)) == (3, 1) and metrics["skipped"].tolist() == [0, 1, 0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_dispatches_of_no_update():
    with pytest.raises(ValueError, match="steps_per_call must be at least 1, got 0"):
        made("one", steps_per_call=0)


@pytest.mark.slow
def test_several_averages_each_by_its_decay(one_by_one):
    state, _ = run(4, "mixed", DECAYS)
    close(state.ema[0], one_by_one[0].ema)
    close(state.params, one_by_one[0].params)
    # The second, by hand from single updates of parameters.
    mesh, alone, step = made("mixed")
    average = jax.tree.map(np.zeros_like, alone.ema)
    for count, batch in zip(range(1, 5), toy.batches(), strict=False):
        alone, _ = step(alone, train.shard_batch(batch, mesh))
        decay = (1 - 1 / count) ** (DECAYS[1].gamma + 1)
        move = lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new)  # noqa: E731
        average = jax.tree.map(move, average, alone.params)
    close(state.ema[1], average)


@pytest.mark.parametrize("options", [{}, pytest.param({"steps_per_call": 2}, marks=pytest.mark.slow)], ids=["", "scan"])
def test_averages_that_wait_on_the_host(one_by_one, options):
    state, losses = run(4, "mixed", DECAYS, "pinned_host", **options)
    close(state.ema[0], one_by_one[0].ema)
    close(state.params, one_by_one[0].params)
    np.testing.assert_allclose(losses, one_by_one[1], rtol=1e-6)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.ema)} == {"pinned_host"}
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves((state.params, state.opt, state.step))}
    assert kinds == {"device"}


@pytest.mark.slow
def test_checkpoints_of_several_averages_on_the_host(tmp_path):
    _, state, _ = made("mixed", DECAYS, "pinned_host")
    state = state._replace(step=jnp.int32(7), ema=(state.params, state.ema[1]))
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, made("mixed", DECAYS, "pinned_host")[1]))
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state)
        checkpointer.wait()
        like = train.state_shapes(toy.init, toy.ADAMW, toy.mesh("fsdp"), ema=DECAYS, ema_memory="pinned_host")
        restored = checkpointer.restore(like)
    assert toy.same(restored, state)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(restored.ema)} == {"pinned_host"}
    assert toy.same(train.load_params(tmp_path), state.ema[0])


def test_a_state_of_fewer_averages():
    mesh, state, _ = made("one")
    _, _, step = made("one", DECAYS)
    with pytest.raises(ValueError, match="tracks a tuple of 2 averages, but the state holds a single average"):
        step.lower(state, train.shard_batch(next(toy.batches()), mesh))


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives(inner)


@pytest.mark.slow
def test_what_is_summed_in_half_precision_is_summed_in_float32():
    """Losses, norms, averages and sums of gradients, of a network that computes in bfloat16; all state is float32."""
    network = networks.UNet((8,), num_blocks=1, groups=4, head_dim=8, mid_attention=True, dtype=jnp.bfloat16)
    process = jd.processes.EDM()
    loss = jd.losses.denoising_loss(networks.as_apply(network), process, jd.parameterize.edm(0.5))
    x = jnp.ones((4, 8, 8, 3))
    init = lambda key: networks.init(network, key, x)  # noqa: E731
    optimizer = train.adamw(1e-3)
    state = train.state_shapes(init, optimizer, toy.mesh("one"))
    step = train.make_step(loss, optimizer, key=KEY, ema=DECAYS[0], grad_accum_steps=2)
    program = step.lower(state, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state.step.sharding)})
    new, metrics = program.out_info
    assert {leaf.dtype for leaf in jax.tree.leaves((new, metrics))} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state.params)
    traced = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, KEY, {"x": x})
    half = [one for one in primitives(traced.jaxpr) if one.outvars and one.outvars[0].aval.dtype == jnp.bfloat16]
    names = {one.primitive.name for one in half}
    assert {"convolution", "dot_general"} <= names  # it does compute in it
    assert not {name for name in names if "reduce" in name or "cum" in name}
