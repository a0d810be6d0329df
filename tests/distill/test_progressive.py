"""progressive: the target of each stage in closed form, and all stages as one program down to a single step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from helpers.exact import CLUSTERS

import jaxdiff as jd
from jaxdiff import distill, parameterize, train
from jaxdiff.distill.jumps import two_jumps
from jaxdiff.levels import Level
from jaxdiff.solvers.base import exponential_step, implied_x0

KEY = jax.random.key(0)
COSINE, FLOW, EDM = jd.processes.Cosine(), jd.processes.Flow(), jd.processes.EDM()
ONE = lambda level: jnp.ones_like(level.sigma)  # noqa: E731


def table(levels):
    """A network with an affine x0_hat = a x + b of its own at each level of a grid, which it knows by its time."""

    def apply(params, x, noise, cond):
        j = jnp.argmin(jnp.abs(noise[:, None] - levels.t[None, :-1]), axis=1)
        a, b = (params[name].astype(x.dtype)[j, None] for name in "ab")
        return a * x + b

    return apply


def exact(levels, m, v):
    """The exact denoiser of N(m, v) at all levels but the clean one, by Bayes' rule."""
    alpha, sigma = (np.asarray(field[:-1], np.float64) for field in (levels.alpha, levels.sigma))
    var = alpha**2 * v + sigma**2
    return {"a": alpha * v / var, "b": m * sigma**2 / var}


def halved(levels, teacher, stride):
    """The optimal student at each level from which its steps start, by composing the teacher's two steps."""
    alpha, sigma = (np.asarray(field, np.float64) for field in (levels.alpha, levels.sigma))
    a, b = teacher["a"].copy(), teacher["b"].copy()

    def step(i, j):
        """DDIM's x_s = alpha_s x0_hat + sigma_s (x - alpha_t x0_hat) / sigma_t as a factor and a summand."""
        slope = alpha[j] - sigma[j] * alpha[i] / sigma[i]
        return sigma[j] / sigma[i] + slope * teacher["a"][i], slope * teacher["b"][i]

    for i in range(0, len(a), stride):
        mid, s = i + stride // 2, i + stride
        (g1, c1), (g2, c2) = step(i, mid), step(mid, s)
        slope = alpha[s] - alpha[i] * sigma[s] / sigma[i]
        a[i], b[i] = (g1 * g2 - sigma[s] / sigma[i]) / slope, (g2 * c1 + c2) / slope
    return {"a": a, "b": b}


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def test_the_target_of_a_gaussian_in_closed_form():
    """K = (g_tm g_ms - sigma_s/sigma_t) / (alpha_s - alpha_t sigma_s/sigma_t), g_ab the gain of DDIM from a to b."""
    t = np.array([0.75, 0.5, 0.25])
    level = Level(t, np.cos(np.pi * t / 2), np.sin(np.pi * t / 2))
    v = 0.25
    g = lambda i, j: (  # noqa: E731
        (level.alpha[i] * level.alpha[j] * v + level.sigma[i] * level.sigma[j])
        / (level.alpha[i] ** 2 * v + level.sigma[i] ** 2)
    )
    ratio = level.sigma[2] / level.sigma[0]
    gain = (g(0, 1) * g(1, 2) - ratio) / (level.alpha[2] - level.alpha[0] * ratio)
    np.testing.assert_allclose(halved(level, exact(level, 0.0, v), 2)["a"][0], gain, rtol=1e-12)


CASES = {
    "cosine": jd.grids.by_time(COSINE, 8),
    "flow": jd.grids.shifted(FLOW, 8, 3.0),
    "edm": jd.grids.karras(EDM, 8, sigma_min=0.01, sigma_max=20.0),
    "table": jd.grids.respaced(jd.processes.Discrete.linear(96), [8]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [name if name == "cosine" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_each_stage_is_least_at_its_closed_form(name):
    levels = jax.tree.map(lambda a: jnp.asarray(a).astype(float), CASES[name])
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(0.7, 0.5, (64, 1)))}
    loss = distill.progressive(table(levels), levels, parameterize.x0, stages=3, stage_updates=5)
    value = jax.jit(jax.value_and_grad(lambda p, ema, step: loss((p, distill.Context(step, ema, None)), KEY, batch)[0]))
    for m, v in ((0.7, 0.25), (0.7, 0.0)):
        teacher = exact(levels, m, v)
        for stage in range(3):
            student = halved(levels, teacher, 2 << stage)
            for step in (5 * stage, 5 * stage + 4):
                least, grads = value(to_jax(student), to_jax(teacher), jnp.int32(step))
                assert least < 1e-18, (name, stage, least)
                assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e-7
            changed = value(to_jax(student), to_jax(student | {"b": student["b"] + 0.1}), jnp.int32(step))[0]
            assert changed > 1e-3
            if v == 0:
                np.testing.assert_allclose(student["b"], m, rtol=1e-10)  # one step is exact already
                np.testing.assert_allclose(student["a"], 0, atol=1e-10)
            else:
                assert value(to_jax(teacher), to_jax(teacher), jnp.int32(step))[0] > 1e-6
            teacher = student


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("steps", "std"),
    [
        pytest.param(4, 0.33344, marks=pytest.mark.slow),
        pytest.param(16, 0.45393, marks=pytest.mark.slow),
        pytest.param(64, 0.48809, marks=pytest.mark.slow),
    ],
)
def test_all_stages_are_one_program_and_end_in_the_teachers_steps(steps, std):
    """The student of one step makes the teacher's N DDIM steps: on N(m, 1/4) its std is the product of their gains."""
    levels, m, v = jax.tree.map(lambda a: a.astype(float), jd.grids.by_time(COSINE, steps)), 0.2, 0.25
    stages, updates = steps.bit_length() - 1, 128
    loss = distill.progressive(table(levels), levels, parameterize.x0, stages=stages, stage_updates=updates, weight=ONE)
    # Of a step's n levels each is met by one n-th of the batch.
    optimizer = optax.sgd(lambda count: 0.3 * steps * 0.5 ** (count // updates + 1).astype(float))
    average = train.ema.every(updates)
    state = train.state_from_params(to_jax(exact(levels, m, v)), optimizer, toy.mesh("one"), ema=average)
    step = train.make_step(
        loss, optimizer, key=KEY, ema=average, given=distill.context(ema=True), steps_per_call=updates
    )
    nodes = np.stack(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], indexing="ij")).reshape(2, 4, 1)  # of Gauss and Hermite
    x, eps = (np.tile(a, (updates, 128, 1)) for a in (m + np.sqrt(v) * nodes[0], nodes[1]))
    for stage in range(stages):
        state, metrics = step(state, {"x": x, "eps": eps})
        assert set(metrics["steps"].tolist()) == {steps >> (stage + 1)}
        assert metrics["mse"][-1] < 1e-12
    assert step.cache_size() == 1
    t = np.linspace(1, 0, steps + 1) * np.pi / 2
    gains = (np.cos(t[:-1]) * np.cos(t[1:]) * v + np.sin(t[:-1]) * np.sin(t[1:])) / (
        np.cos(t[:-1]) ** 2 * v + np.sin(t[:-1]) ** 2
    )
    assert abs(np.prod(gains) - std) < 5e-6  # computed elsewhere
    # From pure noise, x_0 = a x + b.
    params = np.asarray(state.params["a"])
    np.testing.assert_allclose(params[0], np.prod(gains), atol=1e-6)
    np.testing.assert_allclose(state.params["b"][0], m, atol=1e-6)
    state, metrics = step(state, {"x": x, "eps": eps})  # after the last stage
    assert metrics["skipped"].all() and np.array_equal(state.params["a"], params)


@pytest.mark.usefixtures("x64")
def test_the_target_is_the_one_whose_step_ends_where_two_do():
    grid = COSINE(jnp.array([[1.0, 0.8, 0.3], [0.95, 0.79, 0.29], [0.5, 0.4, 0.0]]))  # pure noise and clean data, too
    levels = [grid.at(i) for i in range(3)]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

    @jax.jit
    def both(x):
        z = x
        for cur, nxt in itertools.pairwise(levels):
            z = exponential_step(z, CLUSTERS.denoise(z, cur), cur.expand_to(x), nxt.expand_to(x))
        x0 = two_jumps(lambda x, cur, nxt: CLUSTERS.denoise(x, cur), x, *levels)
        return x0, implied_x0(x, z, levels[0], levels[2])

    got, want = both(x)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_short_steps_in_float32_do_not_cancel():
    """Of 1,000 steps, the last: the difference of two x with nearly equal coefficients would lose three digits."""
    levels = Level(*(jnp.asarray(field, jnp.float32) for field in COSINE(jnp.array([0.502, 0.501, 0.5]))))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1)), jnp.float32)
    target = two_jumps(lambda x, level, nxt: 0.5 * x, x, *(levels.at(i) for i in range(3)))
    np.testing.assert_allclose(target, 0.5 * x, rtol=3e-3)  # x itself moves by 0.3 %
    straight = two_jumps(lambda x, level, nxt: jnp.full_like(x, 0.3), x, *(levels.at(i) for i in range(3)))
    np.testing.assert_array_equal(straight, jnp.full_like(x, 0.3))


def network(params, x, noise, cond, *, key=None):
    """Affine in x and the label; with a key, as with dropout, something else."""
    out = params * (x + cond["label"][:, None].astype(x.dtype)) + 0.1 * noise[:, None]
    return out if key is None else out + 1


LEVELS = jd.grids.by_time(FLOW, 4)
BATCH = {"x": jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)), jnp.float32), "label": jnp.arange(6) % 3}
GUIDED = distill.teacher(
    network, parameterize.x0, guide=lambda c, u: jd.guidance.cfg(c, u, 3.0), null_cond={"label": jnp.array([7])}
)


def test_a_teacher_of_the_first_stage_alone_is_guided():
    seen = []

    def student(params, x, noise, cond):
        seen.append((x, noise))
        return network(params, x, noise, cond)

    weight = lambda level: 1 + level.t  # noqa: E731
    loss = distill.progressive(
        student, LEVELS, parameterize.x0, stages=2, stage_updates=3, teacher=GUIDED, weight=weight
    )

    def by_hand(x, t, width, scale, guided):
        """The mean of the two estimates over alpha / sigma, with uncond + 3 (cond - uncond) by hand."""
        label = np.asarray(BATCH["label"])[:, None]

        def x0(x, t):
            label_seen = 7 + 3 * (label - 7) if guided else label
            return scale * (x + label_seen) + 0.1 * t

        mid, s = t - width / 2, t - width
        first = x0(x, t)
        x_mid = (1 - mid) * first + mid * (x - (1 - t) * first) / t
        z = (1 - s) * x0(x_mid, mid) + s * (x_mid - (1 - mid) * x0(x_mid, mid)) / mid
        return (z - s / t * x) / (1 - s - (1 - t) * s / t)

    @jax.jit
    def run(step):
        context = distill.Context(step, jnp.float32(0.4), {"teacher": jnp.float32(0.6)})
        seen.clear()
        return loss((jnp.float32(0.0), context), KEY, BATCH), seen[-1]

    for step, guided in ((0, True), (2, True), (3, False), (5, False)):
        (value, metrics), inputs = run(jnp.int32(step))
        x, t = (np.asarray(a, np.float64) for a in inputs)
        t = t[:, None]
        want = by_hand(x, t, 0.5 if guided else 1.0, 0.6 if guided else 0.4, guided)
        error = (want - 0.1 * t) ** 2
        np.testing.assert_allclose(metrics["mse"], np.mean(error), rtol=1e-4)
        np.testing.assert_allclose(value, np.mean((1 + t) * error), rtol=1e-4)
        assert metrics["steps"] == (2 if guided else 1)


def test_gradients_follow_the_teacher_of_the_stage_and_dropout_is_the_students():
    def make(**options):
        loss = distill.progressive(network, LEVELS, parameterize.x0, stages=2, stage_updates=3, **options)
        return lambda p, step, ema, frozen: loss((p, distill.Context(step, ema, {"teacher": frozen})), KEY, BATCH)[0]

    grad = jax.jit(jax.grad(make(teacher=GUIDED)))
    at = lambda step, ema, frozen: float(grad(jnp.float32(0.5), jnp.int32(step), ema, frozen))  # noqa: E731
    low, high = jnp.float32(0.4), jnp.float32(0.6)
    assert at(0, low, low) == at(0, high, low) != at(0, low, high)
    assert at(3, low, low) == at(3, low, high) != at(3, high, low)
    # With parameters of 0, x0_hat is 0.1 t, and 1 more with dropout; a step from t = 1 to clean data takes its target
    # from the second estimate, at t = 1/2.
    zero, step = jnp.float32(0.0), jnp.int32(3)
    both = lambda: [make(weight=ONE, dropout=dropout)(zero, step, zero, zero) for dropout in (False, True)]  # noqa: E731
    np.testing.assert_allclose(jax.jit(both)(), [0.05**2, 1.05**2], rtol=1e-5)


@pytest.mark.slow
def test_eager_is_compiled():
    loss = distill.progressive(network, LEVELS, parameterize.x0, stages=2, stage_updates=3, teacher=GUIDED)
    for step in (0, 3):
        context = distill.Context(jnp.int32(step), jnp.float32(0.4), {"teacher": jnp.float32(0.6)})
        inputs = (jnp.float32(0.5), context), KEY, BATCH
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(loss)(*inputs), loss(*inputs))


def test_the_students_grid():
    for make in (lambda n: jd.grids.by_time(COSINE, n), lambda n: jd.grids.shifted(FLOW, n, 3.0)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), distill.student_grid(make(8), 2), make(2)
        )
    np.testing.assert_allclose(distill.student_grid(CASES["edm"], 1).sigma, [20.0, 0.0], rtol=1e-6)


def test_mistakes():
    def refused(match, levels=LEVELS, prediction=parameterize.x0, **options):
        with pytest.raises(ValueError, match=match):
            distill.progressive(network, levels, prediction, **{"stages": 2, "stage_updates": 3} | options)

    refused("must divide 4 steps, got stages=3", stages=3)
    for value in (0, "2", None, 2.0, True):
        refused(f"stages must be an integer of at least 1, got {value!r}", stages=value)
        refused(f"stage_updates must be an integer of at least 1, got {value!r}", stage_updates=value)
    refused("cannot denoise pure noise", prediction=parameterize.eps)
    refused("cannot denoise pure noise", teacher=distill.teacher(network, parameterize.eps))
    refused("noise of a grid falls", levels=LEVELS.at(slice(None, None, -1)))
    refused("teacher must be a function", teacher=2.0)
    with pytest.raises(ValueError, match="divide the 4 steps of its teacher's grid, got 3"):
        distill.student_grid(LEVELS, 3)
    with pytest.raises(ValueError, match=r"steps must be an integer of at least 1, got 2\.0"):
        distill.student_grid(LEVELS, 2.0)
    loss = distill.progressive(network, LEVELS, parameterize.x0, stages=2, stage_updates=3)
    with pytest.raises(ValueError, match=r"context\(ema=True\)"):
        loss((jnp.float32(1.0), distill.Context(jnp.int32(0), None, None)), KEY, BATCH)
