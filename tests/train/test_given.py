"""What a loss may see of the run besides the parameters, and updates that other transformations pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy

from jaxdiff import train

KEY = jax.random.key(0)
# Song et al. 2023, arXiv:2303.01469, app. C: the number of steps N(k) grows, and the target's decay is
# exp(s0 log(mu0) / N(k)); here s0 = 2, s1 = 5, mu0 = 0.5, K = 6.
FIRST, LAST, MU, TOTAL = 2, 5, 0.5, 6


def intervals(k):
    return jnp.ceil(jnp.sqrt(k / TOTAL * ((LAST + 1) ** 2 - FIRST**2) + FIRST**2) - 1) + 1


def decay(k):
    return jnp.exp(FIRST * jnp.log(MU) / intervals(k.astype(jnp.float32)))


def loss(seen, key, batch):
    params, run = seen
    error = params["w"] - run["weight"] * run["target"] - run["intervals"] * jnp.mean(batch["x"])
    return 0.5 * error**2, {"step": run["step"]}


def given(state, frozen):
    made = state.step - state.skipped
    return {
        "step": made,
        "intervals": intervals(made.astype(jnp.float32)),
        "target": state.ema[1]["w"],
        "weight": frozen,
    }


def by_hand(steps):
    w, teacher, target, path = 1.0, 1.0, 1.0, []
    for k in range(steps):
        n = np.ceil(np.sqrt(k / TOTAL * ((LAST + 1) ** 2 - FIRST**2) + FIRST**2) - 1) + 1
        w -= 0.1 * (w - 0.5 * target - n * k)
        teacher = w if k % 3 == 2 else teacher
        mu = MU ** (FIRST / n)
        target = mu * target + (1 - mu) * w
        path.append((w, teacher, target))
    return np.array(path)


@pytest.mark.parametrize("options", [{}, {"grad_accum_steps": 2, "steps_per_call": 3}], ids=["", "scan"])
def test_a_loss_sees_the_step_an_average_and_frozen_arrays(options):
    mesh, averages = toy.mesh("one"), (train.ema.every(3), decay)
    frozen = jax.device_put(jnp.float32(0.5), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    state = train.init_state(lambda key: {"w": jnp.ones(())}, toy.SGD, KEY, mesh, ema=averages)
    step = train.make_step(loss, toy.SGD, key=KEY, ema=averages, given=given, frozen=frozen, **options)
    xs = np.repeat(np.arange(6, dtype=np.float32)[:, None], 4, axis=1)
    path, steps = [], []
    for x in xs.reshape(-1, step.steps_per_call, 4):
        state, metrics = step(state, {"x": jnp.asarray(x if len(x) > 1 else x[0])})
        path.append([float(x) for x in (state.params["w"], *(one["w"] for one in state.ema))])
        steps.extend(np.ravel(metrics["step"]))
    assert steps == list(range(6))
    np.testing.assert_allclose(path, by_hand(6)[step.steps_per_call - 1 :: step.steps_per_call], rtol=1e-5)


def test_averages_that_wait_on_the_host_are_no_target():
    mesh = toy.mesh("mixed")
    state = train.state_shapes(toy.init, toy.SGD, mesh, ema_memory="pinned_host")
    batch = train.shard_batch(next(toy.batches()), mesh)
    seen_loss = lambda seen, key, batch: toy.noisy_loss(seen[0], key, batch)  # noqa: E731
    make = lambda given: train.make_step(seen_loss, toy.SGD, key=KEY, ema=train.ema.constant(0.9), given=given)  # noqa: E731
    reads = [
        lambda state, frozen: state.ema,
        lambda state, frozen: state,
        lambda state, frozen: jnp.sum(state.ema["out"]["bias"]),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"given reads state\.ema, which waits in the host's memory"):
            make(read).lower(state, batch)
    make(lambda state, frozen: (state.step, state.params)).lower(state, batch)


def test_an_average_of_a_part_needs_names():
    for part in (lambda params: params["w"], lambda params: {"0": params["w"]}, lambda params: [params["w"]]):
        with pytest.raises(ValueError, match="averaged must return a tree with names at its top"):
            train.new_state({"w": jnp.zeros(3)}, toy.SGD, averaged=part)


@pytest.mark.slow
def test_checkpoints_of_a_part_and_of_several_averages_of_it(tmp_path):
    mesh = toy.mesh("one")
    for i, decays in enumerate((train.ema.every(2), (train.ema.every(2), train.ema.constant(0.5)))):
        state = train.init_state(toy.init, toy.SGD, KEY, mesh, ema=decays, averaged=lambda params: params["out"])
        state = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
        with train.Checkpointer(tmp_path / str(i)) as checkpointer:
            checkpointer.save(state)
        assert toy.same(train.load_params(tmp_path / str(i)), train.ema_params(state))
        assert set(train.ema_params(state)) == {"kernel", "bias"}


def test_vmap_and_scan_pass_through_an_update():
    """Of 1/2 (w - a x)^2 the gradient is w - a x: four rates, two frozen factors a, three updates in one program."""
    xs, rates, factors = np.array([1.0, -2.0, 0.5]), np.array([0.0, 0.1, 0.5, 1.0]), np.array([1.0, 3.0])
    half_square = lambda seen, key, batch: (0.5 * jnp.mean((seen[0]["w"] - seen[1] * batch["x"]) ** 2), {})  # noqa: E731

    def member(rate, factor):
        optimizer = optax.sgd(rate)
        update = train.make_update(half_square, optimizer, key=KEY, ema=train.ema.constant(0.5), grad_accum_steps=2)
        state = train.new_state({"w": jnp.ones(())}, optimizer)
        batches = {"x": jnp.broadcast_to(jnp.asarray(xs, jnp.float32)[:, None], (3, 4))}
        return jax.lax.scan(lambda state, batch: update(state, batch, factor), state, batches)

    grid = jnp.meshgrid(*(jnp.asarray(x, jnp.float32) for x in (rates, factors)), indexing="ij")
    states, metrics = jax.jit(jax.vmap(jax.vmap(member)))(*grid)
    w = average = np.ones((4, 2))
    for k, x in enumerate(xs):
        error = w - factors * x
        np.testing.assert_allclose(metrics["loss"][..., k], 0.5 * error**2, rtol=1e-5)
        w = w - rates[:, None] * error
        average = 0.5 * (average + w)
    np.testing.assert_allclose(states.params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states.ema["w"], average, rtol=1e-5, atol=1e-6)
    assert states.step.tolist() == [[3, 3]] * 4 and not states.skipped.any()
