"""What holds of every loss of a student that is given both ends of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.few_step import context

import jaxdiff as jd
from jaxdiff import distill
from jaxdiff.distill.jumps import draw

FLOW, COSINE = jd.processes.Flow(), jd.processes.Cosine()
KEY = jax.random.key(0)
PAIRS = {"pairs": distill.sorted_pairs(jd.times.uniform(0.05, 0.95), 0.5)}
LOSSES = {
    "eulerian": (distill.eulerian, COSINE, jd.parameterize.v, PAIRS),
    "lagrangian": (distill.lagrangian, COSINE, jd.parameterize.v, PAIRS),
    "mean_flow": (distill.mean_flow, FLOW, jd.parameterize.velocity, PAIRS),
    "mean_flow, improved": (distill.mean_flow, FLOW, jd.parameterize.velocity, PAIRS | {"improved": True}),
    "semigroup": (distill.semigroup, COSINE, jd.parameterize.v, PAIRS),
    "shortcut": (distill.shortcut, FLOW, jd.parameterize.velocity, {"steps": 8, "share": 0.5}),
    "trajectory": (distill.trajectory, COSINE, jd.parameterize.v, PAIRS),
}
PARAMS = {"a": jnp.float32(0.3), "b": jnp.float32(-0.4)}
each = pytest.mark.parametrize("name", LOSSES)


def network(keys=None):
    """A smooth function of everything that the network is given; it notes the keys."""

    def apply(params, x, noise, cond, *, key=None):
        if keys is not None:
            keys.append(key)
        t, s = (a.reshape(-1, *(1,) * (x.ndim - 1)) for a in (noise, cond["next_noise"]))
        return jnp.sin(params["a"] * x + t) + params["b"] * jnp.cos(x - s) + 0.1 * cond["extra"]

    return apply


def make(name, apply, **more):
    factory, process, prediction, options = LOSSES[name]
    return factory(apply, process, prediction, **options, **more)


def batch(*shape):
    rng = np.random.default_rng(0)
    return {"x": jnp.asarray(rng.normal(size=shape), jnp.float32), "extra": jnp.ones(shape, jnp.float32)}


@pytest.mark.slow
@each
def test_compiled_it_is_the_same_and_its_arrays_have_any_rank(name):
    loss = make(name, network())
    run = jax.value_and_grad(lambda p, data: loss((p, context(ema=PARAMS)), KEY, data)[0])
    data = batch(3, 2, 2, 1)
    eager, compiled = run(PARAMS, data), jax.jit(run)(PARAMS, data)
    assert eager[0].shape == () and eager[0].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), eager, compiled)
    assert all(np.isfinite(g) and g != 0 for g in jax.tree.leaves(eager[1]))
    # Examples do not depend on their shape.
    flat = jax.jit(run)(PARAMS, jax.tree.map(lambda a: a.reshape(3, 4), data))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), flat, compiled)


@pytest.mark.parametrize(
    "name", [n if n in ("lagrangian", "trajectory") else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES]
)
def test_all_calls_have_one_dropout_mask(name):
    def keys_of(key, **more):
        keys = []
        make(name, network(keys), **more)((PARAMS, context(ema=PARAMS)), key, batch(4, 2))
        return [None if key is None else jax.random.key_data(key) for key in keys]

    keys = jax.jit(lambda key: keys_of(key, dropout=True))
    first, *others = keys(KEY)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert not np.array_equal(keys(jax.random.key(1))[0], first)
    without = []
    jax.eval_shape(lambda: without.extend(keys_of(KEY)))
    assert set(without) == {None} and len(without) == len(others) + 1


@pytest.mark.parametrize("name", ["lagrangian", "semigroup"])
def test_no_gradient_passes_into_a_students_own_target(name):
    """A network with a number for each kind of step: the long ones learn, those that make their target do not."""

    def apply(params, x, noise, cond):
        size = (noise - cond["next_noise"])[:, None]
        kind = jnp.where(size > 0.4997, params["long"], jnp.where(size == 0, params["none"], params["half"]))
        return jnp.sin(x) + kind * x

    pairs = lambda key, batch, step: (jnp.full(batch, 0.8), jnp.full(batch, 0.3), jnp.ones(batch))  # noqa: E731
    loss = LOSSES[name][0](apply, COSINE, jd.parameterize.v, pairs=pairs)
    params = dict.fromkeys(("long", "half", "none"), jnp.float32(0.1))
    grad = jax.jit(jax.grad(lambda p: loss((p, context()), KEY, {"x": batch(4, 2)["x"]})[0]))(params)
    assert grad["long"] != 0 and grad["half"] == 0 and grad["none"] == 0


@pytest.mark.parametrize("name", ["eulerian", "lagrangian", "semigroup", "trajectory"])
def test_times_of_a_table_may_be_integers(name):
    """They are those in floating point, of which there are others between, and derivatives."""
    table, steps = jd.processes.Discrete.linear(10), []
    for dtype in (jnp.int32, jnp.float32):
        times = jnp.asarray([9, 4], dtype), jnp.asarray([2, 4], dtype)
        pairs = lambda key, batch, step, times=times: (*times, jnp.ones(2))  # noqa: E731
        steps.append(draw(table, pairs, jnp.int32(0), KEY, batch(2, 3)))
        loss = LOSSES[name][0](network(), table, jd.parameterize.v, pairs=pairs)
        jax.eval_shape(lambda p, loss=loss: loss((p, context(ema=PARAMS)), KEY, batch(2, 3)), PARAMS)
    a, b = (step._replace(key=(), more=(), weight=()) for step in steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), a, b)
    assert a.t.dtype == a.s.dtype == jnp.float32


@each
def test_mistakes(name):
    factory, process, prediction, options = LOSSES[name]
    with pytest.raises(ValueError, match="apply must be a function"):
        factory(3, process, prediction, **options)
    with pytest.raises(ValueError, match="prediction is edm, which is a factory"):
        factory(network(), process, jd.parameterize.edm, **options)
    with pytest.raises(ValueError, match="process is the class Flow"):
        factory(network(), jd.processes.Flow, prediction, **options)
    if "pairs" in options:
        with pytest.raises(ValueError, match="pairs is sorted_pairs, which is a factory"):
            factory(network(), process, prediction, **options | {"pairs": distill.sorted_pairs})
        with pytest.raises(ValueError, match=r"distance is adaptive, which is a factory: call adaptive\(\)"):
            make(name, network(), distance=distill.adaptive)
        with pytest.raises(ValueError, match=r"distance must be a function \(a, b\) -> \[B\], got 3"):
            make(name, network(), distance=3)
        with pytest.raises(ValueError, match=r"teacher is teacher, which is a factory: call teacher\(\)"):
            make(name, network(), teacher=distill.teacher)
    with pytest.raises(ValueError, match='holds the data under "x"'):
        make(name, network())((PARAMS, context(ema=PARAMS)), KEY, {"y": jnp.ones(3)})
    with pytest.raises(ValueError, match=r'a batch is a dict with the data under "x", got float32\[3\]'):
        make(name, network())((PARAMS, context(ema=PARAMS)), KEY, jnp.ones(3))
