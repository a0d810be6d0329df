"""Two players, five turns to one, against two loops written by hand; what a loss may see of the run; stages."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy

from jaxdiff import train

KEY = jax.random.key(1)
SHAPE = (64, 64)  # just enough elements to be sharded over "fsdp"
OPTIMIZERS = {"student": train.adamw(1e-2, warmup_steps=2, clip_norm=None), "critic": train.adamw(3e-3, clip_norm=0.1)}
RESTART = 4  # updates in a stage of the critic's optimizer
STAGE = 6  # updates in a stage of the student's average, its target
FROZEN = {"scale": np.float32(1.5)}
STEPS, POISON = 14, 8
ORDER = ("student", "critic")
calls = dict.fromkeys(ORDER, 0)


def student_loss(seen, key, batch):
    params, context = seen
    noise = jax.random.normal(key, batch["x"].shape)
    x, target = (jnp.tanh((batch["x"] + noise) @ tree["w"]) for tree in (params["student"], context["target"]))
    value = jnp.mean((context["scale"] * x - target) ** 2) + jnp.mean(x @ params["critic"]["w"])
    return value, {"moved": jnp.mean((x - target) ** 2)}


def critic_loss(seen, key, batch):
    params, context = seen
    noise = jax.random.normal(key, batch["x"].shape)
    x = jnp.tanh(noise @ params["student"]["w"])
    return jnp.mean((x @ params["critic"]["w"] - batch["x"]) ** 2) + 0.01 * context["step"], {}


LOSSES = {"student": student_loss, "critic": critic_loss}


def counted(name):
    def loss(*arguments):
        jax.debug.callback(lambda: calls.update({name: calls[name] + 1}))
        return LOSSES[name](*arguments)

    return loss


def turn(made):
    return {"student": made % 6 == 5, "critic": made % 6 != 5}


def given(state, frozen):
    return {**frozen, "step": state.step.astype(jnp.float32), "target": state.ema}


def game(losses=LOSSES):
    restarting = OPTIMIZERS | {"critic": train.restarting(OPTIMIZERS["critic"], RESTART)}
    return train.players({name: train.Player(losses[name], restarting[name]) for name in ORDER}, turn, given)


def init(key):
    keys = jax.random.split(key)
    return {name: {"w": 0.1 * jax.random.normal(k, SHAPE)} for name, k in zip(ORDER, keys, strict=True)}


def averaged(params):
    return params["student"]


OPTIONS = {"ema": train.ema.every(STAGE), "averaged": averaged}


def batches(start=0, poison=None):
    for k in itertools.count(start):
        x = np.random.default_rng(k).normal(size=(16, SHAPE[0])).astype(np.float32)
        yield {"x": x * np.float32(np.nan) if k == poison else x}


def run(state, step, where, steps, poison=POISON):
    """The state after each step, on the host, and the metrics of each."""
    seen, count = [], step.steps_per_call
    source = batches(int(state.step), poison)
    for _ in range((steps - int(state.step)) // count):
        several = list(itertools.islice(source, count))
        batch = jax.tree.map(lambda *parts: np.stack(parts), *several) if count > 1 else several[0]
        state, metrics = step(state, train.shard_batch(batch, where, axis=int(count > 1)))
        seen.append((jax.tree.map(np.array, state), jax.device_get(metrics)))
    return state, seen


@functools.cache
def made(where, **options):
    played = game({name: counted(name) for name in ORDER} if where == "one" else LOSSES)
    mesh = toy.mesh(where)
    frozen = jax.device_put(FROZEN, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    step = train.make_step(
        played.loss, played.optimizer, key=KEY, given=played.given, frozen=frozen, **OPTIONS | options
    )
    first = lambda: train.init_state(init, played.optimizer, jax.random.key(0), mesh, **OPTIONS)  # noqa: E731
    return mesh, first, step


@pytest.fixture(scope="module")
def straight():
    calls.update(dict.fromkeys(ORDER, 0))
    mesh, first, step = made("one")
    state, seen = run(first(), step, mesh, STEPS)
    jax.effects_barrier()
    assert step.cache_size() == 1
    return state, seen, dict(calls)


@pytest.fixture(scope="module")
def by_hand():
    """The loops of two players: parameters after each step, and how often the student moved."""
    params = jax.jit(init)(jax.random.key(0))
    target, path, turns, opt = params["student"], [], dict.fromkeys(ORDER, 0), {}

    @functools.partial(jax.jit, static_argnums=0)
    def move(name, params, opt, context, key, x):
        own = lambda own: LOSSES[name]((params | {name: own}, context), key, {"x": x})[0]  # noqa: E731
        value, grads = jax.value_and_grad(own)(params[name])
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = OPTIMIZERS[name].update(grads, opt, params[name])
            return value, optax.apply_updates(params[name], updates), opt

    number = 0
    for k, batch in zip(range(STEPS), batches(), strict=False):
        if k != POISON:
            name = ORDER[number % 6 != 5]
            if turns[name] == 0 or (name == "critic" and turns[name] % RESTART == 0):
                opt[name] = OPTIMIZERS[name].init(params[name])
            key = jax.random.fold_in(jax.random.fold_in(KEY, k), ORDER.index(name))
            context = {**FROZEN, "step": jnp.float32(k), "target": target}
            value, params[name], opt[name] = move(name, params, opt[name], context, key, batch["x"])
            turns[name], number = turns[name] + 1, number + 1
            target = params["student"] if number % STAGE == 0 else target
        path.append((value, jax.tree.map(np.array, params), np.array(target["w"])))
    return path, turns


def test_turns_are_the_loops_written_by_hand(straight, by_hand):
    path, turns = by_hand
    assert turns == {"student": 2, "critic": 11}
    for k, ((state, metrics), (value, params, target)) in enumerate(zip(straight[1], path, strict=True)):
        for name in ORDER:
            np.testing.assert_allclose(state.params[name]["w"], params[name]["w"], rtol=0, atol=3e-7)
        np.testing.assert_allclose(state.ema["w"], target, rtol=0, atol=3e-7)
        if k != POISON:
            np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


def test_an_idle_player_stays_as_it_is_bit_for_bit_and_its_loss_is_not_computed(straight):
    _, seen, computed = straight
    states = [jax.tree.map(np.array, made("one")[1]()), *(state for state, _ in seen)]
    moves = dict.fromkeys(ORDER, 0)
    for (old, new), (_, metrics) in zip(itertools.pairwise(states), seen, strict=True):
        for name in ORDER:
            plays = bool(turn(old.step - old.skipped)[name])
            part = lambda state, name=name: (state.params[name], state.opt.inner[name])  # noqa: E731
            assert toy.same(part(old), part(new)) == (not plays or bool(metrics["skipped"]))
            assert np.isfinite(metrics[f"{name}/loss"]) == (plays and not metrics["skipped"])
            moves[name] += plays
    assert computed == moves == {"student": 2, "critic": 12}
    skipped = [int(metrics["skipped"]) for _, metrics in seen]
    assert skipped == [int(k == POISON) for k in range(STEPS)]
    assert np.isfinite(seen[5][1]["student/moved"]) and np.isnan(seen[4][1]["student/moved"])


def test_resumes_bit_for_bit_and_its_average_is_the_student(straight, tmp_path):
    """Between two stages, turns, restarts and after an update that was not made."""
    mesh, first, step = made("one")
    stop = POISON + 2
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(run(first(), step, mesh, stop)[0])
        checkpointer.wait()
        like = train.state_shapes(init, game().optimizer, mesh, **OPTIONS)
        state, seen = run(checkpointer.restore(like), step, mesh, STEPS)
    assert toy.same(state, straight[0])
    for (_, got), (_, want) in zip(seen, straight[1][stop:], strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    loaded = train.load_params(tmp_path)
    assert toy.same(loaded, straight[1][stop - 1][0].ema) and toy.same(train.ema_params(state), state.ema)
    assert set(train.load_params(tmp_path, "params")) == set(ORDER)


@pytest.mark.parametrize(
    ("where", "options"),
    [("mixed", {}), pytest.param("mixed", {"grad_accum_steps": 2, "steps_per_call": 7}, marks=pytest.mark.slow)],
    ids=["", "scan"],
)
def test_eight_devices(straight, where, options):
    mesh, first, step = made(where, **options)
    state, seen = run(first(), step, mesh, STEPS)
    assert step.cache_size() == 1
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state) if leaf.shape == SHAPE} == {
        jax.sharding.PartitionSpec(None, "fsdp")
    }
    if options:  # other noise for each microbatch
        assert [int(x) for _, metrics in seen for x in metrics["skipped"]] == [int(k == POISON) for k in range(STEPS)]
        mesh, first, step = made("mixed", grad_accum_steps=2)
        want = run(first(), step, mesh, STEPS)[0]
    else:
        want = straight[0]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=5e-6)


@pytest.mark.slow
def test_an_idle_player_has_no_activations():
    """A step of two players needs little more memory than that of one: neither keeps what the other computes."""
    mesh, size = toy.mesh("one"), 4096
    batch = {"x": jax.ShapeDtypeStruct((size, toy.WIDTH), jnp.float32)}

    def temporaries(names):
        loss = lambda name: lambda seen, key, batch: toy.noisy_loss(seen[0][name], key, batch)  # noqa: E731
        played = train.players(
            {name: train.Player(loss(name), toy.SGD) for name in names},
            lambda made: {name: made % 2 == i for i, name in enumerate(names)},
        )
        state = train.state_shapes(lambda key: {name: toy.init(key) for name in names}, played.optimizer, mesh)
        step = train.make_step(played.loss, played.optimizer, key=KEY, ema=train.ema.constant(0.9), given=played.given)
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    activations = 4 * size * toy.HIDDEN
    assert temporaries("ab") - temporaries("a") < activations / 2 < temporaries("a")


def test_what_the_names_of_players_must_be():
    player = train.Player(student_loss, toy.SGD)
    with pytest.raises(ValueError, match=r"turn must have a value for each of the players \['a', 'b'\], got \['a'\]"):
        train.players({"a": player, "b": player}, lambda made: {"a": made > 0})
    alone = train.players({"a": player}, lambda made: {"a": True})
    for params, found in (({"a": 0.0, "b": 0.0}, r"\['a', 'b'\]"), ((0.0,), "tuple")):
        with pytest.raises(ValueError, match=rf"params must have .* players \['a'\], got {found}"):
            alone.optimizer.init(params)
