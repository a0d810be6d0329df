import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy

from jaxdiff import train


def losses(where, steps=6, **arguments):
    mesh, state, step = toy.new(where, **arguments)
    values = []
    for _, batch in zip(range(steps), toy.batches(), strict=False):
        state, metrics = step(state, train.shard_batch(batch, mesh))
        values.append(float(metrics["loss"]))
    return np.array(values), state, metrics


@pytest.fixture(scope="module")
def one_device():
    return losses("one")


@pytest.mark.parametrize("where", ["data", "fsdp", "mixed"])
def test_eight_devices_equal_one(one_device, where):
    values, state, metrics = losses(where)
    np.testing.assert_allclose(values, one_device[0], atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], one_device[2]["grad_norm"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(one_device[1].ema), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("where", "gathers"), [("data", False), ("fsdp", True), ("mixed", True)])
def test_collectives(where, gathers):
    mesh, state, step = toy.new(where)
    program = step.lower(state, train.shard_batch(next(toy.batches()), mesh)).compile().as_text()
    assert ("all-reduce(" in program) or ("reduce-scatter(" in program)
    assert ("all-gather(" in program) == gathers
    assert "all-to-all(" not in program
    assert "collective-permute(" not in program


def test_one_step_by_hand():
    """SGD, a known gradient, the key of the step, and the average's first update."""
    mesh = toy.mesh("one")
    key = jax.random.key(3)
    state = train.init_state(lambda key: {"w": jnp.full((2,), 2.0)}, toy.SGD, key, mesh)._replace(step=jnp.int32(5))

    def loss(params, key, batch):
        return jnp.sum(params["w"] * jax.random.normal(key, (2,))), {"seen": jnp.sum(batch["x"])}

    step = train.make_step(loss, toy.SGD, key=key, ema=train.ema.constant(0.75))
    gradient = np.asarray(jax.random.normal(jax.random.fold_in(key, 5), (2,)))
    state, metrics = step(state, {"x": jnp.arange(3.0)})
    assert int(state.step) == 6
    np.testing.assert_allclose(state.params["w"], 2.0 - 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"], 2.0 - 0.25 * 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 2.0 * gradient.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((gradient**2).sum()), rtol=1e-6)
    assert float(metrics["seen"]) == 3.0


def test_donated():
    mesh, state, step = toy.new("mixed")
    old = jax.tree.leaves(state)
    step(state, train.shard_batch(next(toy.batches()), mesh))
    assert all(x.is_deleted() for x in old)


def test_stays_where_it_was_and_compiles_once():
    mesh, state, step = toy.new("mixed")
    places = jax.tree.map(lambda x: x.sharding, state)
    for _, batch in zip(range(3), toy.batches(), strict=False):
        state, _ = step(state, train.shard_batch(batch, mesh))
    assert jax.tree.map(lambda x: x.sharding, state) == places
    assert step.cache_size() == 1


@pytest.mark.parametrize(("where", "count"), [("one", 4), ("mixed", 2)])
def test_accumulation_equals_the_large_batch(where, count):
    def run(grad_accum_steps):
        mesh, state, step = toy.new(where, loss=toy.plain_loss, optimizer=toy.SGD, grad_accum_steps=grad_accum_steps)
        return step(state, train.shard_batch(next(toy.batches(32)), mesh))

    (state, metrics), (whole, expected) = run(count), run(1)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_accumulation_draws_new_noise_for_each_microbatch():
    mesh, state, _ = toy.new()

    def draws(params, key, batch):
        metrics = {"draw": jax.random.normal(key), "mean": jnp.mean(batch["x"])}
        return 0.0 * params["out"]["bias"][0], metrics

    step = train.make_step(draws, toy.ADAMW, key=jax.random.key(1), ema=train.ema.constant(0.9), grad_accum_steps=2)
    batch = next(toy.batches())
    _, metrics = step(state, train.shard_batch(batch, mesh))
    key = jax.random.fold_in(jax.random.key(1), 0)
    expected = np.mean([jax.random.normal(jax.random.fold_in(key, i)) for i in range(2)])
    np.testing.assert_allclose(metrics["draw"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["mean"], batch["x"].mean(), atol=1e-7)


def test_accumulation_needs_no_second_gradient_per_microbatch():
    """Temporaries must not grow with the number of microbatches of a given size."""

    def temporaries(count):
        mesh, state, step = toy.new(optimizer=toy.SGD, grad_accum_steps=count)
        batch = train.shard_batch(next(toy.batches(8 * count)), mesh)
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    gradient = 4 * (2 * toy.WIDTH * toy.HIDDEN + toy.HIDDEN + toy.WIDTH)
    assert temporaries(16) - temporaries(2) < gradient / 2


def test_a_batch_that_cannot_be_cut():
    mesh, state, step = toy.new("data", grad_accum_steps=4)
    with pytest.raises(ValueError, match=r"batch of 16.*grad_accum_steps=4.*8 parts.*multiple of 32"):
        step(state, train.shard_batch(next(toy.batches(16)), mesh))


def test_arguments_of_another_kind():
    given = {
        "loss": lambda params, key, batch: (0.0, {}),
        "optimizer": train.adamw(1e-3),
        "ema": train.ema.constant(0.9),
    }
    for name, wrong, words in (
        ("loss", 1.0, r"loss must be a function \(params, key, batch\)"),
        ("optimizer", train.adamw, "optimizer must be an optax optimizer"),
        ("ema", 0.99, r"ema must be a decay such as train.ema.constant\(0.999\), or several, got 0.99"),
        ("ema", (train.ema.constant(0.9), 0.5), "got 0.5"),
        ("ema", train.ema.warmup, r"ema is warmup, which makes decays: call train.ema.warmup\(\.\.\.\)"),
    ):
        with pytest.raises(ValueError, match=words):
            train.make_update(**given | {name: wrong}, key=jax.random.key(0))


def test_a_step_is_not_traced():
    _, state, step = toy.new("one")
    with pytest.raises(ValueError, match="make_step is not for traced states: make_update is"):
        jax.eval_shape(step, state, next(toy.batches()))


def test_accumulate_of_zero():
    with pytest.raises(ValueError, match="grad_accum_steps must be at least 1, got 0"):
        toy.new(grad_accum_steps=0)


def test_grad_norm_is_before_clipping():
    mesh, state, step = toy.new(optimizer=optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0)))
    before = jax.tree.map(np.array, state.params)
    state, metrics = step(state, train.shard_batch(next(toy.batches()), mesh))
    moved = optax.tree.norm(jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before))
    assert float(metrics["grad_norm"]) > 0.1
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)


def left_out(state, before, steps=1):
    """Whether nothing has changed but what counts."""
    assert (int(state.step), int(state.skipped)) == (int(before.step) + steps, int(before.skipped) + steps)
    return toy.same(state._replace(step=before.step, skipped=before.skipped), before)


@pytest.mark.parametrize("where", ["one", "mixed"])
def test_a_batch_that_is_not_finite_changes_nothing_but_counts(where):
    mesh, state, step = toy.new(where)
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, train.shard_batch(next(toy.batches(poison=0)), mesh))
    assert np.isnan(float(metrics["loss"])) and int(metrics["skipped"]) == 1
    assert left_out(state, before)
    # The next batches are trained on, as the first updates of the schedule, whose rate is 0 at first.
    for number in (1, 2):
        state, metrics = step(state, train.shard_batch(next(toy.batches(start=number)), mesh))
    assert (int(state.step), int(state.skipped), int(metrics["skipped"])) == (3, 1, 0)
    assert not toy.same(state.params, before.params) and not toy.same(state.ema, before.ema)
    assert {int(x) for x in jax.tree.leaves(state.opt) if x.dtype == jnp.int32} == {2}


def test_averages_count_the_updates_that_were_made():
    """The decay is told 0, 1, 2: not the number of the batch that was left out."""
    mesh = toy.mesh("one")
    decay = lambda made: jnp.where(made == 2, 0.0, 0.5)  # noqa: E731
    state = train.init_state(lambda key: {"w": jnp.zeros(())}, toy.SGD, jax.random.key(0), mesh)
    step = train.make_step(
        lambda params, key, batch: (batch["x"][0] * params["w"], {}), toy.SGD, key=jax.random.key(0), ema=decay
    )
    averages = []
    for slope in (-10.0, jnp.inf, -10.0, -10.0):
        state, _ = step(state, {"x": jnp.full((1,), slope)})
        averages.append(float(state.ema["w"]))
    # The parameter is 1, 1, 2, 3 after these; the third update that was made takes it as it is.
    np.testing.assert_allclose(averages, [0.5, 0.5, 1.25, 3.0], rtol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    """sqrt has a finite value and an infinite slope at 0."""
    mesh = toy.mesh("one")
    state = train.init_state(lambda key: {"w": jnp.zeros((2,))}, toy.SGD, jax.random.key(0), mesh)
    before = jax.tree.map(np.array, state)

    def loss(params, key, batch):
        return jnp.sum(jnp.sqrt(params["w"])), {}

    step = train.make_step(loss, toy.SGD, key=jax.random.key(0), ema=train.ema.constant(0.9))
    state, metrics = step(state, {"x": jnp.zeros((1, 1))})
    assert np.isfinite(float(metrics["loss"]))
    assert not np.isfinite(float(metrics["grad_norm"]))
    assert left_out(state, before)


@pytest.mark.parametrize("options", [{}, {"grad_accum_steps": 2}])
def test_an_update_whose_norm_is_not_finite_is_not_made(options):
    """A finite loss and gradient, and an update of one number of one array that could lead it out of float32."""
    mesh = toy.mesh("one")
    size = lambda g: jnp.where(jnp.abs(g) > 1e-22, 1e25, 1e18)  # noqa: E731
    scaled = optax.stateless(lambda grads, params: jax.tree.map(lambda g: -jnp.sign(g) * size(g), grads))
    init = lambda key: {"a": jnp.zeros((4,)), "b": jnp.full((3, 3), -1e18)}  # noqa: E731
    state = train.init_state(init, scaled, jax.random.key(0), mesh)
    before = jax.tree.map(np.array, state)

    def loss(params, key, batch):
        return params["b"][1, 2] * batch["x"][0], {}

    step = train.make_step(loss, scaled, key=jax.random.key(0), ema=train.ema.constant(0.9), **options)
    state, metrics = step(state, {"x": jnp.full((2,), 1e-20)})
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and int(metrics["skipped"]) == 1
    assert left_out(state, before)
    state, metrics = step(state, {"x": jnp.full((2,), 1e-27)})
    assert int(metrics["skipped"]) == 0
    np.testing.assert_allclose(state.params["b"][1], [-1e18, -1e18, -2e18], rtol=1e-6)
