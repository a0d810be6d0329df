"""Consistency distillation and training on Gaussian data, where all is known, and on a mixture's integrated flow."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.consistency import (
    M,
    V,
    by_time,
    consistency_function,
    context,
    denoise,
    fixed,
    hermite,
    network,
    quadrature,
    variance,
)
from helpers.exact import CLUSTERS

import jaxdiff as jd
from jaxdiff import distill, parameterize, solvers, train
from jaxdiff.levels import Level
from jaxdiff.processes import EDM, Cosine, Discrete, Flow

KEY = jax.random.key(0)
slow = pytest.mark.slow
CASES = {
    "training on Flow": (Flow(), parameterize.velocity, None, [0.8, 0.5, 0.3], [0.7, 0.2, 0.0]),
    "training on EDM": (EDM(), parameterize.edm(0.5), None, [9.0, 0.5, 0.1], [5.0, 0.4, 0.0]),
    "distillation on Cosine": (Cosine(), parameterize.v, solvers.ddim(), [0.8, 0.5, 0.3], [0.7, 0.2, 0.0]),
}


@pytest.mark.parametrize("case", ["training on Flow", pytest.param("training on EDM", marks=slow), *list(CASES)[2:]])
@pytest.mark.usefixtures("x64")
def test_the_optimum_is_the_targets_mean_and_the_loss_its_variance(case):
    """With the exact target, the optimum is f(x_s) after an Euler step; training's floor is f's variance given x_t.

    Each pair of times has a student of its own, a[i] + b[i] x, and the last one ends clean. Var[x_0 | x_t] is V
    sigma_t^2 / V_t.
    """
    process, prediction, solver, t, s = CASES[case]
    x0, eps, weight = quadrature()
    pair = np.repeat(np.arange(3), len(x0))
    x0, eps, weight = (np.concatenate([a] * 3) for a in (x0, eps, weight))
    cur, nxt = (Level(*(np.asarray(f, np.float64) for f in process(jnp.asarray(time)))) for time in (t, s))
    v_t, v_s = variance(cur), variance(nxt)

    def affine(slope, alpha):  # M + slope (x - alpha M)
        return {"a": jnp.asarray(M * (1 - slope * alpha)), "b": jnp.asarray(slope)}

    gain = (nxt.alpha * cur.alpha * V + nxt.sigma * cur.sigma) / v_t
    student, average = affine(np.sqrt(V / v_s) * gain, cur.alpha), affine(np.sqrt(V / v_s), nxt.alpha)
    average = {name: value.at[2].set(9.0) for name, value in average.items()}  # the clean level needs no network

    def f(params, x, level, cond):
        return params["a"][cond["pair"], None] + params["b"][cond["pair"], None] * x

    told = by_time(prediction)
    loss = distill.consistency(
        network(process, told, f), process, told, pairs=fixed(np.array(t)[pair], np.array(s)[pair], weight),
        distance=distill.squared, teacher=None if solver is None else lambda context, cond: denoise, solver=solver,
        target="ema",
    )  # fmt: skip
    batch = {"x": jnp.asarray(x0), "eps": jnp.asarray(eps), "pair": jnp.asarray(pair)}
    both = jax.value_and_grad(lambda p: loss((p, context(ema=average)), KEY, batch)[0])
    run = jax.jit(both)
    value, grad = run(student)
    floor = (nxt.alpha - nxt.sigma * cur.alpha / cur.sigma) ** 2 * V * cur.sigma**2 / v_t * V / v_s
    if case == "training on Flow":  # dt^2 V^2 / (V_t V_s)
        np.testing.assert_allclose(floor, np.subtract(t, s) ** 2 * V**2 / (v_t * v_s), rtol=1e-12)
    np.testing.assert_allclose(value, floor.mean() if solver is None else 0, atol=1e-12)
    for name in "ab":
        np.testing.assert_allclose(grad[name], 0, atol=1e-12)
        moved = student | {name: student[name] + 0.01}
        assert run(moved)[0] > value + 1e-6
    if case == "training on EDM":
        eager_value, eager_grad = both(student)
        np.testing.assert_allclose(eager_value, value, rtol=1e-12)
        np.testing.assert_allclose(eager_grad["b"], grad["b"], atol=1e-12)


@slow
@pytest.mark.usefixtures("x64")
def test_bias_of_training_falls_with_the_square_of_the_step():
    """At f, the gradient is that of E[f(x_s) | x_t] - f(x_t): Flow, t = 0.8, x = 1.3; numbers computed elsewhere."""
    x, t, dt = 1.3, 0.8, np.array([0.1, 0.05, 0.025, 0.0125])
    nodes, weights = hermite(6)
    v_t = (1 - t) ** 2 * V + t**2
    x0 = M + (1 - t) * V / v_t * (x - (1 - t) * M) + np.sqrt(V * t**2 / v_t) * nodes  # q(x_0 | x_t)
    x0 = np.concatenate([x0] * 4)[:, None]
    pair = np.repeat(np.arange(4), len(nodes))
    told = by_time(parameterize.velocity)

    def f(params, x, level, cond):
        return consistency_function(x, level) + params[cond["pair"], None]

    loss = distill.consistency(
        network(Flow(), told, f), Flow(), told, distance=distill.squared,
        pairs=fixed(t, t - dt[pair], np.concatenate([weights] * 4) * len(nodes)),
    )  # fmt: skip
    batch = {"x": jnp.asarray(x0), "eps": jnp.asarray((x - (1 - t) * x0) / t), "pair": jnp.asarray(pair)}
    grad = jax.jit(jax.grad(lambda p: loss((p, context()), KEY, batch)[0]))(jnp.zeros(4))
    bias = -grad / 2 * 4
    velocity = -M + (t - (1 - t) * V) / v_t * (x - (1 - t) * M)
    euler = consistency_function(x - dt * velocity, Flow()(jnp.asarray(t - dt)))
    np.testing.assert_allclose(bias, euler - consistency_function(x, Flow()(jnp.asarray(t))), atol=1e-14)
    np.testing.assert_allclose(bias, [-2.7e-3, -6.0e-4, -1.4e-4, -3.4e-5], rtol=0.04)


@slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [Flow(), Cosine()], ids=["flow", "cosine"])
def test_distillation_of_a_mixture_against_its_integrated_flow(process):
    """At the flow's end f, what is left is the error of the teacher's step: h^2 with DDIM, h^3 with Heun, 0 exactly."""
    rng = np.random.default_rng(0)
    x0, eps = jnp.asarray(CLUSTERS.draw(rng, 12)), jnp.asarray(rng.normal(size=(12, 2)))
    told, exact = by_time(parameterize.v), solvers.rk45(1e-11, 1e-11, process)

    def end(params, x, level, cond):
        def path(x, t):
            levels = process(jnp.stack([t, jnp.full_like(t, 1e-4), jnp.zeros_like(t)]))
            return jd.sample(CLUSTERS.denoise, exact, levels, x[None], KEY)[0]

        return jax.vmap(path)(x, level.t[:, 0])

    @jax.jit
    def errors(h):
        def error(solver):
            loss = distill.consistency(
                network(process, told, end), process, told, pairs=fixed(t, t - h), distance=distill.squared,
                teacher=lambda context, cond: CLUSTERS.denoise, solver=solver,
            )  # fmt: skip
            return jnp.sqrt(loss((None, context()), KEY, {"x": x0, "eps": eps})[0])

        t = jnp.linspace(0.4, 0.8, 12)
        return jnp.stack([error(solver) for solver in (solvers.ddim(), None, solvers.rk4(process))])

    large, small = (np.asarray(errors(h)) for h in (0.02, 0.01))
    np.testing.assert_allclose(np.log2(large / small)[:2], [2, 3], atol=0.15)
    assert small[2] < 1e-8 and small[1] < small[0] / 10


def _linear(params, x, noise, cond, key=None):
    F = params * jnp.sin(noise)[:, None] * x
    return F if key is None else F * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)


BATCH = {"x": M + 0.5 * jax.random.normal(KEY, (8, 3)), "eps": jax.random.normal(jax.random.key(1), (8, 3))}


def _all(*losses):
    """Values and gradients at 0.4 of losses with the context of each, by one program."""

    def total(p):
        return jnp.stack([loss((p, c), KEY, BATCH)[0] for loss, c in losses])

    return np.stack(jax.jit(lambda p: jax.jvp(total, (p,), (jnp.ones_like(p),)))(jnp.float32(0.4)), axis=1)


def test_the_student_is_its_own_target_without_gradient():
    told, ema = by_time(parameterize.velocity), jnp.float32
    make = lambda target: distill.consistency(_linear, Flow(), told, pairs=fixed(0.7, 0.5, 2.0), target=target)  # noqa: E731
    own, average, chosen, other = _all(
        (make("student"), context()), (make("ema"), context(ema=ema(0.4))),
        (make(lambda context: context.ema[1]), context(ema=(ema(0.1), ema(0.4)))), (make("ema"), context(ema=ema(0.1))),
    )  # fmt: skip
    np.testing.assert_allclose(own, average, rtol=1e-5)
    np.testing.assert_allclose(own, chosen, rtol=1e-5)
    assert own[1] != 0 and abs(other - own).min() > 1e-3


def test_both_evaluations_have_the_same_dropout_mask():
    """At the same time twice, the two estimates are equal, which other masks would not be."""
    make = lambda s, dropout: distill.consistency(  # noqa: E731
        _linear, Flow(), by_time(parameterize.velocity), pairs=fixed(0.6, s), dropout=dropout
    )
    same, masked, plain = _all(*((make(*options), context()) for options in ((0.6, True), (0.3, True), (0.3, False))))
    assert same[0] == 0 and masked[0] != plain[0]


@slow
@pytest.mark.parametrize(
    "prediction", [parameterize.consistency_model(0.5), parameterize.edm(0.5), parameterize.v], ids=["cm", "edm", "v"]
)
def test_clean_data_is_its_own_estimate(prediction):
    """With s clean the target is x_0, and the network, here of examples that interact, gets no infinite noise."""

    def apply(params, x, noise, cond):
        return params * x + jnp.where(jnp.isfinite(noise).all(), 0, jnp.nan)

    clean = np.arange(8) < 4
    loss = distill.consistency(
        apply, EDM(), prediction, pairs=fixed(0.5, np.where(clean, 0, 0.2), clean), distance=distill.squared,
        target="ema",
    )  # fmt: skip

    def expected(inputs, key, batch):
        f = jd.denoiser(apply, inputs[0], prediction)(batch["x"] + 0.5 * batch["eps"], EDM()(jnp.asarray(0.5)))
        return jnp.mean(jnp.square(f - batch["x"])[:4]) / 2, {}

    value, transcribed = _all((loss, context(ema=jnp.float32(7.0))), (expected, None))
    np.testing.assert_allclose(value, transcribed, rtol=1e-5)
    assert np.isfinite(value).all() and value[1] != 0


PAIRS = {
    "ct": lambda: distill.grid_pairs(Flow(), distill.ct_grid(Flow(), 100, s1=10)),
    "ict": lambda: distill.log_normal_pairs(Flow(), distill.ict_grid(Flow(), 100, s0=2, s1=16)),
    "ect": lambda: distill.ect_pairs(Flow(), steps=100),
}


@slow
@pytest.mark.parametrize("name", PAIRS)
def test_turning_stages_compiles_once(name):
    apply = lambda params, x, noise, cond: params * x  # noqa: E731
    loss = distill.consistency(apply, Flow(), by_time(parameterize.velocity), pairs=PAIRS[name]())
    step = jax.jit(lambda p, k: loss((p, context(k)), KEY, BATCH)[0])
    values = [float(step(0.3, jnp.int32(k))) for k in (0, 50, 99)]
    assert step._cache_size() == 1 and len(set(values)) == 3 and np.isfinite(values).all()


@slow
def test_training_with_an_average_that_follows():
    """Three updates of F = p with consistency training's decay, against a transcription: f = x - t p on Flow."""
    t, s, lr = 0.6, 0.4, 0.5
    loss = distill.consistency(
        lambda p, x, noise, cond: jnp.broadcast_to(p["F"], x.shape), Flow(), parameterize.velocity,
        pairs=fixed(t, s), distance=distill.squared, target="ema",
    )  # fmt: skip
    decay = distill.ct_decay(4, s1=4)
    step = train.make_step(loss, optax.sgd(lr), key=KEY, ema=decay, given=distill.context(ema=True))
    state = train.init_state(
        lambda key: {"F": jnp.zeros(())}, optax.sgd(lr), KEY, train.make_mesh(1, devices=jax.devices()[:1]), ema=decay
    )
    p = average = 0.0
    u = np.mean(BATCH["eps"] - BATCH["x"])
    for k in range(3):
        state, _ = step(state, BATCH)
        p -= lr * -2 * t * ((t - s) * u - t * p + s * average)
        n = np.ceil(np.sqrt(k / 4 * (5**2 - 2**2) + 2**2) - 1) + 1
        mu = np.exp(2 * np.log(0.9) / n)
        average = mu * average + (1 - mu) * p
        np.testing.assert_allclose((state.params["F"], state.ema["F"]), (p, average), rtol=1e-5)


@slow
def test_of_a_network_in_bfloat16_on_a_beta_table():
    """The differences are taken in float32, and a table's integer times and their clean end go through."""
    process = Discrete.linear(50)
    pairs = distill.grid_pairs(process, jd.grids.ddpm(process, 10))

    def value(dtype):
        def apply(params, x, noise, cond):
            return (params.astype(dtype) * jnp.tanh(x.astype(dtype))).astype(dtype)

        teacher = distill.teacher(apply, parameterize.eps, params=lambda context: context.frozen)
        loss = distill.consistency(
            apply, process, parameterize.eps, pairs=pairs, teacher=teacher, solver=solvers.ddim()
        )
        return _all((loss, context(frozen=jnp.float32(0.9))))[0]

    (low, low_grad), (high, high_grad) = value(jnp.bfloat16), value(jnp.float32)
    np.testing.assert_allclose((low, low_grad), (high, high_grad), rtol=0.1)
    assert high > 0 and high_grad != 0


def test_mistakes():
    apply = lambda params, x, noise, cond: x  # noqa: E731
    make = lambda prediction=parameterize.v, **options: distill.consistency(  # noqa: E731
        apply, Cosine(), prediction, **{"pairs": fixed(0.7, 0.5), **options}
    )
    with pytest.raises(ValueError, match=r"f\(x, 0\) = x, since skip = 0 and out = 1"):
        make(parameterize.x0)
    with pytest.raises(ValueError, match="grid_pairs, which is a factory"):
        make(pairs=distill.grid_pairs)
    with pytest.raises(ValueError, match="no flow to solve"):
        make(solver=solvers.heun())
    teacher = lambda context, cond: denoise  # noqa: E731
    for solver in (solvers.ddpm(), solvers.rk45()):
        with pytest.raises(ValueError, match="fixed number of evaluations"):
            make(teacher=teacher, solver=solver)
    with pytest.raises(ValueError, match="'student', 'ema' or a function"):
        make(target="average")
    of_eps = distill.teacher(apply, parameterize.eps)
    table = Discrete.linear(10)
    table = replace(table, alpha=np.append(table.alpha[:-1], 1e-30), sigma=np.append(table.sigma[:-1], 1.0))
    for process, of_grid in itertools.product(
        (Flow(), Cosine(), table), (distill.grid_pairs, distill.log_normal_pairs)
    ):
        pairs = of_grid(process, process(process.t_max * jnp.asarray([1, 0.5, 0])))
        make(pairs=pairs)
        for options in ({"prediction": parameterize.eps}, {"teacher": of_eps}):
            with pytest.raises(ValueError, match=r"predicts eps cannot denoise pure noise .* x0, v or velocity"):
                make(pairs=pairs, **options)
        late = of_grid(process, process(process.t_max * jnp.asarray([0.9, 0])))
        make(parameterize.eps, pairs=late, teacher=of_eps)
    params = {"a": jnp.ones(())}
    for ema, message in ((None, r"distill.context\(ema=True\)"), ((params, params), r"context.ema\[0\]")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make(target="ema"), (params, context(ema=ema)), KEY, BATCH)
