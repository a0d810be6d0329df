"""Flow maps: the three identities, on Gaussian data in closed form and on a mixture against an integrated flow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS
from helpers.few_step import BASIS, M, V, context, denoise, fixed, named, nodes, student

import jaxdiff as jd
from jaxdiff import distill
from jaxdiff.distill.jumps import derivative, jump, two_jumps, upward, velocity
from jaxdiff.parameterize import edm, v
from jaxdiff.parameterize import velocity as flow_velocity
from jaxdiff.solvers.base import exponential_step, implied_x0

FLOW, VELOCITY = jd.processes.Flow(), named(flow_velocity)
KEY, ZERO = jax.random.key(0), np.zeros(BASIS)
LOSSES = {"lagrangian": distill.lagrangian, "eulerian": distill.eulerian, "semigroup": distill.semigroup}
CASES = {
    "flow": (FLOW, VELOCITY, 1.0),
    "cosine": (jd.processes.Cosine(), named(v), 1.0),
    "edm": (jd.processes.EDM(), named(edm(0.5)), 4.0),
}
T, S = np.array([0.8, 0.8, 0.5, 0.9]), np.array([0.2, 0.8, 0.5, 0.1])
CLEAN = np.array([0.2, 0.8, 0.5, 0.0])


def both(name, case):
    """(params, shift) -> value and gradient of the loss of the data, and of the loss of a teacher of shifted data."""
    process, prediction, scale = CASES[case]
    pairs = fixed(scale * T, scale * (S if name == "lagrangian" else CLEAN))
    options = (
        {"pairs": pairs},
        {"pairs": pairs, "teacher": lambda context, cond: partial(denoise, m=M + context.frozen)},
    )
    losses = [LOSSES[name](student(process, prediction), process, prediction, **more) for more in options]

    def run(p, shift):
        of = lambda loss: lambda p: loss((p, context(frozen=shift)), KEY, nodes(4))[0]  # noqa: E731
        return [jax.value_and_grad(of(loss))(p) for loss in losses]

    return jax.jit(run)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", [c if c == "flow" else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
@pytest.mark.parametrize("name", ["eulerian", "lagrangian", pytest.param("semigroup", marks=pytest.mark.slow)])
def test_at_the_flow_map_the_gradient_is_zero(name, case):
    run = both(name, case)
    (value, grad), (taught, taught_grad) = run(ZERO, 0.0)
    np.testing.assert_allclose(grad, 0, atol=1e-9)
    np.testing.assert_allclose(taught, 0, atol=1e-18)
    np.testing.assert_allclose(taught_grad, 0, atol=1e-9)
    assert all(np.all(np.abs(grad) > 1e-4) for _, grad in run(ZERO + 0.1, 0.0))
    assert run(ZERO, 0.5)[1][0] > 1e-3 and run(ZERO, 0.5)[0][0] == value
    if case == "flow":
        # Where s = t the data's scatter around their mean, as denoising's; elsewhere only the Eulerian loss has it.
        variance = lambda t: (1 - t) ** 2 * V + t**2  # noqa: E731
        s = CLEAN if name == "eulerian" else np.where(S == T, T, np.inf)
        floor = np.where(s <= 1, V * variance(np.minimum(s, 1)) / variance(T) ** 2, 0)
        np.testing.assert_allclose(value, np.mean(floor), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_on_flow_the_eulerian_loss_is_meanflow():
    p = ZERO + np.linspace(-0.2, 0.3, BASIS)
    loss = distill.mean_flow(student(FLOW, VELOCITY), FLOW, VELOCITY, pairs=fixed(T, CLEAN), distance=distill.squared)
    theirs = jax.jit(jax.value_and_grad(lambda p: loss((p, context()), KEY, nodes(4))[0]))(p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), both("eulerian", "flow")(p, 0.0)[0], theirs)


def test_a_difference_stays_within_the_process():
    """No time is the noisiest or beyond it, where `edm` is undefined, and the quotient is by the true gap."""

    def apply(params, x, noise, cond):
        return jnp.sin(params * x) + noise[:, None]

    t, s = jnp.asarray([0.995, 1 - 1e-6, 0.5]), jnp.asarray([0.1, 0.1, 0.5])
    options = {"pairs": fixed(t, s), "difference": 0.02}
    loss = distill.eulerian(apply, FLOW, edm(0.5), **options)
    batch = {"x": jnp.ones((3, 1)), "eps": jnp.ones((3, 1))}
    value, slope = jax.jit(jax.value_and_grad(lambda p: loss((p, context()), KEY, batch)[0]))(0.3)
    assert np.isfinite(value) and np.isfinite(slope) and slope != 0
    square = lambda t: t[:, None] ** 2  # noqa: E731
    up = upward(FLOW, t, 0.02)
    np.testing.assert_allclose(up, [0.0025, 5e-7, 0.02], rtol=0.1)
    got = jax.jit(lambda t: derivative(square, (t,), (jnp.ones(3),), 0.02, up=up))(t)[1]
    np.testing.assert_allclose(got[:, 0], 2 * t + up - 0.02, rtol=1e-3)  # ((t + a)^2 - (t - b)^2) / (a + b)


def integrate(x, t, s, steps=24):
    """The probability flow of CLUSTERS, dx/dt = (x - x0_hat) / t on Flow, by the classical Runge-Kutta method."""
    slope = lambda x, t: (x - CLUSTERS.denoise(x, FLOW(t))) / t[:, None]  # noqa: E731
    h = (s - t) / steps

    def body(x, i):
        at = t + i * h
        a = slope(x, at)
        b = slope(x + 0.5 * h[:, None] * a, at + 0.5 * h)
        c = slope(x + 0.5 * h[:, None] * b, at + 0.5 * h)
        d = slope(x + h[:, None] * c, at + h)
        return x + h[:, None] / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(body, x, jnp.arange(steps, dtype=x.dtype))[0]


def mixture(params, x, noise, cond, *, key=None):
    """The velocity of the mixture's flow map, plus what the parameters add."""
    s = cond["next_noise"]
    u = (x - integrate(x, noise, s)) / (noise - s)[:, None]
    return u + params[0] + params[1] * x + params[2] * (noise - s)[:, None] * x


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_of_a_mixture_the_integrated_map_meets_all_three():
    t, s = jnp.asarray([0.9, 0.8, 0.6, 0.95]), jnp.asarray([0.4, 0.1, 0.3, 0.6])
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(CLUSTERS.draw(rng, 4)), "eps": jnp.asarray(rng.normal(size=(4, 2)))}
    teacher = lambda context, cond: CLUSTERS.denoise  # noqa: E731

    def all_three(p):
        each = (make(mixture, FLOW, VELOCITY, pairs=fixed(t, s), teacher=teacher) for make in LOSSES.values())
        values = jnp.stack([loss((p, context()), KEY, batch)[0] for loss in each])
        return values, values

    off, at = jax.jit(lambda ps: jax.lax.map(jax.jacrev(all_three, has_aux=True), ps))(
        jnp.asarray([[0.0, 0, 0], [0.1, -0.1, 0.2]])
    )
    assert np.all(at[0] < 1e-10) and np.all(np.abs(off[0]) < 1e-4)
    assert np.all(at[1] > 1e-4) and np.all(np.abs(off[1]) > 1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_integrated_map_is_the_adaptive_solvers():
    x = jnp.asarray(CLUSTERS.draw(np.random.default_rng(1), 3, FLOW(jnp.float64(0.9))))
    solver = jd.solvers.rk45(1e-9, 1e-9)
    want = jd.sample(CLUSTERS.denoise, solver, FLOW(jnp.asarray([0.9, 0.3])), x, KEY)
    np.testing.assert_allclose(integrate(x, jnp.full(3, 0.9), jnp.full(3, 0.3)), want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_jumps():
    rng = np.random.default_rng(0)
    x, x0 = rng.normal(size=(2, 4, 3))
    # Two jumps by an arbitrary network, which end where the jump of the mean x0_hat does.
    network = lambda x, a, b: jnp.sin(x) + (a.expand_to(x).t - 2 * b.expand_to(x).t)  # noqa: E731

    @jax.jit
    def run(times):
        out = []
        for process, _, scale in CASES.values():
            cur, mid, nxt = (process(scale * t) for t in times)
            jumped = jump(x, x0, cur, nxt), exponential_step(x, x0, cur.expand_to(x), nxt.expand_to(x))
            z = jump(x, network(x, cur, mid), cur, mid)
            z = jump(z, network(z, mid, nxt), mid, nxt)
            twice = two_jumps(network, x, cur, mid, nxt), implied_x0(x, z, cur, nxt)
            # The velocity is the derivative of the jump by its end.
            moved = jax.jvp(lambda s, c=cur, p=process: jump(x, x0, c, p(s)), (cur.t,), (jnp.ones(4),))[1]
            out += [jumped, twice, (velocity(process, x, x0, cur.t), moved)]
        return out

    for got, want in run((T, 0.3 * T, 0.2 * T * np.array([1, 1, 0, 1]))):
        np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_a_jump_has_its_derivatives_at_the_ends_of_a_process():
    end = lambda t, s: jump(jnp.ones((1, 1)), jnp.full((1, 1), 0.3), FLOW(t), FLOW(s))[0, 0]  # noqa: E731
    slopes = jax.jit(jax.grad(end, (0, 1)))
    # x_s = (s / t) x + (1 - s / t) x_0
    np.testing.assert_allclose(slopes(0.8, 0.0), [0.0, 0.7 / 0.8], atol=1e-12)
    np.testing.assert_allclose(slopes(1.0, 0.3), [-0.3 * 0.7, 0.7], atol=1e-12)
