import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import train
from jaxdiff.train import adafactor, adamw, packing, restarting, skip_spikes, with_projection


def moves(optimizer, gradients, start=1.0):
    """Return the parameter after each of some gradients; optax itself needs the standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        params, path = jnp.full((2,), start), []
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jnp.full((2,), gradient), state, params)
            params = optax.apply_updates(params, updates)
            path.append(float(params[0]))
    return np.array(path)


def test_constant_gradient_moves_by_the_learning_rate():
    """With a constant gradient Adam's m / sqrt(v) is 1."""
    np.testing.assert_allclose(moves(adamw(0.1, clip_norm=None), [0.5] * 3), [0.9, 0.8, 0.7], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0, 0.05, 0.1, 0.075, 0.05, 0.025, 0]),
        ("cosine", [0, 0.05, *(0.05 * (1 + np.cos(np.pi * np.arange(5) / 4)))]),
        ("inverse_sqrt", [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_warmup_and_schedule(schedule, rates):
    for make in (adamw, adafactor):
        path = moves(
            make(0.1, warmup_steps=2, steps=6, schedule=schedule, clip_norm=None, mu_dtype=jnp.float32), [0.5] * 7
        )
        np.testing.assert_allclose(-np.diff(path, prepend=1.0), rates, atol=1e-6)


def test_inverse_sqrt_is_edm2s():
    """learning_rate_schedule of its training loop: lr_ref / sqrt(max(t / t_ref, 1)), and min(t / t_rampup, 1) of it."""
    nimg = np.arange(0, 40 * 64, 64)
    rates = 0.01 / np.sqrt(np.maximum(nimg / (9 * 64), 1)) * np.minimum(nimg / (5 * 64), 1)
    path = moves(adamw(0.01, warmup_steps=5, steps=9, schedule="inverse_sqrt", clip_norm=None), [0.5] * 40)
    np.testing.assert_allclose(-np.diff(path, prepend=1.0), rates, rtol=1e-3, atol=1e-6)
    assert rates[36] == 0.005


def test_clipping_by_the_global_norm():
    """A gradient of norm 50 becomes one of norm 1; Adam sees the ratio to the small one that follows."""
    big, small = 50 / np.sqrt(2), 0.1 / np.sqrt(2)
    clipped = moves(adamw(0.1, clip_norm=1.0), [big, small])
    unclipped = moves(adamw(0.1, clip_norm=None), [1 / np.sqrt(2), small])
    np.testing.assert_allclose(clipped, unclipped, rtol=1e-5)


def test_weight_decay_is_decoupled():
    np.testing.assert_allclose(moves(adamw(0.1, weight_decay=0.5), [0.0]), [1 - 0.1 * 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "step"},
        {"schedule": "cosine"},
        {"schedule": "inverse_sqrt"},
        {"schedule": "linear", "warmup_steps": 5, "steps": 5},
    ],
)
def test_refused(arguments):
    for make in (adamw, adafactor):
        with pytest.raises(ValueError, match="schedule"):
            make(0.1, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"lr": 1e39}, {"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": 20.0}, {"weight_decay": -1.0}, {"b1": 1.0},
     {"b1": 1 - 1e-9}, {"b2": 1 - 1e-9}, {"b1": 0.9, "b2": 0.5}, {"clip_norm": 0.0}, {"clip_norm": float("inf")}],
)  # fmt: skip
def test_updates_that_can_overflow_are_looked_at(arguments):
    assert isinstance(adamw(0.1), packing.Bounded)
    assert not isinstance(adamw(**{"lr": 0.1, **arguments}), packing.Bounded)


def test_a_rate_can_be_traced():
    params = {"a": jnp.ones(3)}

    @jax.jit
    def moved(rate):
        optimizer = adamw(rate, clip_norm=None)
        return optimizer.update({"a": jnp.full(3, 0.5)}, optimizer.init(params), params)[0]["a"]

    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(moved(0.25), -0.25, rtol=1e-5)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.811), (0.0, 0.0), (0.5, 0.95)])
def test_updates_of_adamw_are_bounded_where_the_norm_is_finite(b1, b2):
    """So that a step does not look at each: after any others, gradients of any size lead nowhere."""
    optimizer = adamw(1e5, clip_norm=None, b1=b1, b2=b2, weight_decay=1e-5)
    params = {"a": jnp.array([0.0, 1e38, -1e38]), "b": jnp.ones((64, 64))}
    assert packing.is_bounded(optimizer, params)
    assert not packing.is_bounded(optimizer, {**params, "c": jnp.ones(3, jnp.float16)})
    state, scales = optimizer.init(params), [0.0, 1e-45, 1e-30, 1e17, 1e-30, 0.0, 0.0, 1.0] + 9 * [0.0]
    update = jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        for scale in scales:
            grads = jax.tree.map(lambda x, scale=scale: scale * jnp.cos(x), params)
            assert np.isfinite(packing.norm(grads))
            updates, state = update(grads, state, params)
            assert np.abs(updates["b"]).max() < 1e7
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(optax.apply_updates(params, updates)))


def test_projected_updates_end_where_the_projection_of_the_others_does():
    circle = lambda x: x / jnp.linalg.norm(x)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        optimizer, x = with_projection(optax.sgd(0.5), circle), jnp.array([0.6, 0.8])
        updates, _ = optimizer.update(jnp.array([-1.0, 1.0]), optimizer.init(x), x)
    np.testing.assert_allclose(x + updates, np.array([1.1, 0.3]) / np.hypot(1.1, 0.3), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [adamw, adafactor])
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.02)])
def test_moments_in_half_precision_are_near_and_the_parameters_stay_exact(make, dtype, error):
    gradients = np.random.default_rng(0).normal(size=20) + 1.0
    want = moves(make(0.1, warmup_steps=3, steps=20, schedule="cosine", mu_dtype=None), gradients)
    got = moves(make(0.1, warmup_steps=3, steps=20, schedule="cosine", mu_dtype=dtype), gradients)
    assert np.abs(got - want).max() <= error * np.abs(want - 1.0).max()
    state = make(0.1, mu_dtype=dtype).init(jnp.ones((3,)))
    stored = [x.dtype for x in jax.tree.leaves(state) if x.shape == (3,)]
    assert sorted(stored, key=str) == sorted([jnp.dtype(dtype), jnp.dtype("float32")], key=str)


@pytest.mark.slow
def test_adafactor_against_its_paper():
    """Shazeer and Stern 2018, Algorithm 4: row and column means, the bound on the update's size, then momentum."""
    rng = np.random.default_rng(0)
    x, lr, decay, momentum, shrink = rng.normal(size=(128, 160)), 0.01, 0.99, 0.9, 0.1
    optimizer = adafactor(lr, clip_norm=None, weight_decay=shrink, b1=momentum, b2=decay, mu_dtype=jnp.float32)
    params = jnp.asarray(x, jnp.float32)
    rows, columns, average = np.zeros(128), np.zeros(160), np.zeros_like(x)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for t in range(1, 4):
            gradient = rng.normal(size=x.shape) * np.exp(rng.normal(size=(128, 1))) * 10.0**t
            beta = min(1 - t**-0.8, decay)
            rows = beta * rows + (1 - beta) * (gradient**2).mean(axis=1)
            columns = beta * columns + (1 - beta) * (gradient**2).mean(axis=0)
            step = gradient / np.sqrt(np.outer(rows, columns) / rows.mean())
            step /= max(1.0, np.sqrt((step**2).mean()))
            average = momentum * average + (1 - momentum) * step
            x = x - lr * (average / (1 - momentum**t) + shrink * x)
            updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, rtol=1e-4, atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < params.size + 1000


@pytest.mark.parametrize("make", [adamw, adafactor])
def test_moments_in_other_types(make):
    with pytest.raises(ValueError, match="float32, bfloat16 or None"):
        make(0.1, mu_dtype=jnp.float16)


def test_spikes_are_refused_and_leave_no_trace():
    """By make_step, which makes no update of NaN: the rest is as if the batch had not been there."""
    mesh = train.make_mesh(devices=jax.devices()[:1])
    optimizer = skip_spikes(optax.sgd(0.25), 3.0)

    def run(slopes):
        state = train.init_state(lambda key: {"w": jnp.zeros((2,))}, optimizer, jax.random.key(0), mesh)
        for slope in slopes:
            state, metrics = step(state, {"x": jnp.full((1,), slope)})
            skipped.append(int(metrics["skipped"]))
        return state

    skipped = []
    step = train.make_step(lambda params, key, batch: (batch["x"][0] * params["w"][0], {}), optimizer,
                           key=jax.random.key(0), ema=train.ema.constant(0.5))  # fmt: skip
    # Their mean is 2 before the third: 1e3 is a spike, 5.9 is none; then it is 3.3, and 9.8 is none.
    state = run([1.0, 3.0, 1e3, 5.9, -9.8, 30.0])
    assert skipped == [0, 0, 1, 0, 0, 1] and int(state.skipped) == 2
    without = run([1.0, 3.0, 5.9, -9.8])
    for a, b in zip(jax.tree.leaves(state[1:4]), jax.tree.leaves(without[1:4]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(state.params["w"], [-0.25 * (1.0 + 3.0 + 5.9 - 9.8), 0.0], rtol=1e-5)
    np.testing.assert_allclose(state.opt.norm, (1.0 + 3.0 + 5.9 + 9.8) / 4, rtol=1e-5)


@pytest.mark.parametrize("times", [1.0, 0, float("nan")])
def test_times_that_refuse_everything(times):
    with pytest.raises(ValueError, match="greater than 1"):
        skip_spikes(optax.sgd(1.0), times)


def test_each_part_has_its_own():
    params = {"network": {"w": jnp.ones(2)}, "text": {"a": {"w": jnp.ones(3)}}}
    optimizer = train.by_part({"network": optax.sgd(0.5), "text": optax.sgd(0.25)})
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    chex.assert_trees_all_equal(
        updates, {"network": {"w": jnp.full(2, -0.5)}, "text": {"a": {"w": jnp.full(3, -0.25)}}}
    )
    with pytest.raises(ValueError, match=r"are of \['network', 'text'\], and the parameters have \['network'\]"):
        optimizer.init({"network": params["network"]})


def test_a_restarting_optimizer_is_a_new_one_at_each_stage():
    """Momentum and schedule: bit for bit what a new optimizer does with each stage's gradients."""
    gradients = [0.5, -0.2, 1.5, 0.1, 0.3, -0.7, 0.4]
    make = lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 4), momentum=0.9)  # noqa: E731
    want, start = [], 1.0
    for i in range(0, len(gradients), 3):
        want.extend(moves(make(), gradients[i : i + 3], start))
        start = want[-1]
    got = moves(restarting(make(), 3), gradients)
    np.testing.assert_array_equal(got, want)
    assert np.abs(got - moves(make(), gradients)).max() > 1e-2
    with pytest.raises(ValueError, match="at least 1 update, got every=0"):
        restarting(make(), 0)
