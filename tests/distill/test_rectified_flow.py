"""Rectified flow: pairs of an exact flow, the optimum on them in closed form, straightness by quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.exact import BLOB, CLUSTERS
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff import distill, losses, networks, parameterize, times, train

KEY = jax.random.key(0)
FLOW = jd.processes.Flow()
M, V = 0.7, 0.25
ROOT = np.sqrt(V)


def numbered(count, start=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(start, start + count))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [FLOW, jd.processes.Cosine()])
@pytest.mark.slow
def test_pairs_are_those_of_the_flow_in_batches_of_any_size(process):
    levels = jd.grids.by_time(process, 60)
    make = jax.jit(
        lambda keys, shift: distill.reflow(
            lambda cond: lambda x, level: BLOB.denoise(x - 0 * cond["shift"][:, None], level),
            jd.solvers.heun(), levels, keys, shape=(2,), cond={"shift": shift}, dtype=jnp.float64,
        )
    )  # fmt: skip
    pairs = make(numbered(5), jnp.arange(5.0))
    want = BLOB.flow(pairs["eps"], levels.at(0), levels.at(-1))
    np.testing.assert_allclose(pairs["x"], want, atol=2e-3)
    np.testing.assert_array_equal(pairs["shift"], np.arange(5.0))
    assert pairs["x"].dtype == jnp.float64 and abs(np.std(pairs["eps"]) - 1) < 0.5
    again = make(numbered(2, 3), jnp.arange(3.0, 5.0))
    for name, value in again.items():
        np.testing.assert_allclose(value, pairs[name][3:], rtol=1e-12, atol=1e-12)


def network(slope):
    """The velocity -M + slope(t) (x - (1 - t) M), changed by two numbers."""

    def apply(params, x, noise, cond):
        t = noise[:, None]
        return -M + slope(t) * (x - (1 - t) * M) + params[0] + params[1] * x

    return apply


straight = network(lambda t: (1 - ROOT) / ((1 - t) * ROOT + t))
curved = network(lambda t: (t - (1 - t) * V) / ((1 - t) ** 2 * V + t**2))
ZERO = np.zeros(2)


@pytest.mark.usefixtures("x64")
def test_the_optimum_on_pairs_of_a_gaussian_is_constant_on_each_path():
    """Nodes of Gauss and Hermite are the noise, and x_0 = m + sqrt(v) eps the flow's: the loss is 0 at its least."""
    eps = jnp.asarray(np.polynomial.hermite_e.hermegauss(8)[0])[:, None]
    pairs = {"x": M + ROOT * eps, "eps": eps}
    levels, ends = jd.grids.by_time(FLOW, 4), jd.grids.by_time(FLOW, 1)
    denoise = jd.denoiser(straight, ZERO, parameterize.velocity)
    inner = FLOW(jnp.array([1.0, 0.37]))

    @jax.jit
    def run(params):
        at = times.on_grid(levels)
        each = [losses.denoising_loss(net, FLOW, parameterize.velocity, times=at) for net in (straight, curved)]
        optima = [jax.value_and_grad(lambda p, loss=loss: loss(p, KEY, pairs)[0])(params) for loss in each]
        again = distill.reflow(
            lambda cond: denoise, jd.solvers.ddim(), ends, numbered(6), shape=(1,), dtype=jnp.float64
        )
        return optima, again, jd.sample(denoise, jd.solvers.ddim(), inner, jnp.array([[0.0], [1.0]]), KEY)

    ((least, grad), (other, other_grad)), again, x = run(jnp.asarray(ZERO))
    assert least < 1e-20 and np.abs(grad).max() < 1e-10
    assert other > 1e-2 and np.abs(other_grad).max() > 1e-2  # the velocity before is no optimum of the pairs
    np.testing.assert_allclose(again["x"], M + ROOT * again["eps"], rtol=1e-12)  # exact in one step: twice is once
    np.testing.assert_allclose(x[1] - x[0], 0.685, rtol=1e-12)  # at t = 0.37, where the mixture's std was 0.486


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [None, pytest.param("cosine", marks=pytest.mark.slow)])
def test_straightness_and_cost_of_a_gaussian(process):
    """x_t = (1 - t) m + S_t z: the integral of (S' - (S_1 - S_0))^2, times z^2; as well where variance is preserved."""
    slope = lambda t: (t - (1 - t) * V) / np.sqrt((1 - t) ** 2 * V + t**2)  # noqa: E731
    exact = quad(lambda t: slope(t) ** 2, 0, 1)[0] - (1 - ROOT) ** 2
    x, solver = jnp.array([[1.0], [-2.0]]), jd.solvers.rk4()

    def denoise(x, level):
        return M + level.alpha * V / (level.alpha**2 * V + level.sigma**2) * (x - level.alpha * M)

    @jax.jit
    def measured(x):
        of = lambda levels: distill.straightness(denoise, solver, levels, x, KEY)  # noqa: E731
        reflowed = jd.denoiser(straight, ZERO, parameterize.velocity)
        return (
            of(jd.grids.by_angle(jd.processes.Cosine(), 80) if process else jd.grids.by_time(FLOW, 80)),
            of(jd.grids.by_time(FLOW, 40)),
            distill.straightness(reflowed, jd.solvers.ddim(), jd.grids.by_time(FLOW, 8), x, KEY),
        )

    fine, coarse, reflowed = measured(x)
    np.testing.assert_allclose(reflowed, 0, atol=1e-20)
    np.testing.assert_allclose(fine, exact * x[:, 0] ** 2, rtol=4e-3)
    if process:
        return
    error = [float(np.sum(exact * x[:, 0] ** 2 - s)) for s in (coarse, fine)]
    assert error[1] > 0 and abs(np.log2(error[0] / error[1]) - 2) < 0.1
    cost = distill.transport_cost(
        jnp.array([[[1.0], [2.0]], [[0.0], [0.0]]]), jnp.array([[[0.0], [4.0]], [[3.0], [0.0]]])
    )
    np.testing.assert_array_equal(cost, [5.0, 9.0])


def test_mistakes():
    levels = jd.grids.by_time(FLOW, 2)
    denoise = lambda x, level: x  # noqa: E731
    with pytest.raises(ValueError, match="draws no noise"):
        distill.reflow(lambda cond: denoise, jd.solvers.ddim(1.0), levels, numbered(2), shape=(1,))
    with pytest.raises(ValueError, match="draws no noise"):
        distill.straightness(denoise, jd.solvers.ddim(1.0), levels, jnp.ones((2, 1)), KEY)
    with pytest.raises(ValueError, match="a vector of keys, one for each pair"):
        distill.reflow(lambda cond: denoise, jd.solvers.ddim(), levels, KEY, shape=(1,))
    with pytest.raises(ValueError, match=r"\(cond\) -> denoiser"):
        distill.reflow(denoise, jd.solvers.ddim(), levels, numbered(2), shape=(1,))


@pytest.mark.slow
def test_no_round_is_less_straight_or_dearer_than_the_last():
    """From the exact velocity of a mixture on, two rounds with a small network."""
    levels, solver, module = jd.grids.by_time(FLOW, 16), jd.solvers.heun(), networks.MLP(width=32, num_blocks=2)
    velocity, apply = parameterize.time_scaled(parameterize.velocity), networks.as_apply(module)
    params = networks.init(module, KEY, jnp.zeros((1, 2)))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 700))
    loss = losses.denoising_loss(apply, FLOW, velocity, times=times.stratified())
    update = train.make_update(loss, optimizer, key=KEY, ema=train.ema.constant(0.0))

    @jax.jit
    def fit(pairs):
        def step(state, number):
            chosen = jax.random.randint(jax.random.fold_in(KEY, number), (128,), 0, len(pairs["x"]))
            return update(state, {name: value[chosen] for name, value in pairs.items()})

        return jax.lax.scan(step, train.new_state(params, optimizer), jnp.arange(700))[0].params

    def measured(denoise):
        pairs = distill.reflow(lambda cond: denoise, solver, levels, numbered(1024), shape=(2,))
        s = distill.straightness(denoise, solver, levels, pairs["eps"], KEY)
        return pairs, jnp.mean(s), jnp.mean(distill.transport_cost(pairs["x"], pairs["eps"]))

    of_network = jax.jit(lambda params: measured(jd.denoiser(apply, params, velocity)))
    pairs, *first = jax.jit(lambda: measured(CLUSTERS.denoise))()
    mean, cov = CLUSTERS.moments(FLOW(0.0))
    bends, costs = [first[0]], [np.sum(mean**2) + np.trace(cov) + 2, first[1]]  # of independent pairs, then of the flow
    for _ in range(2):
        pairs, bend, cost = of_network(fit(pairs))
        bends.append(bend)
        costs.append(cost)
    assert bends[0] > 0.05 and bends[1] < 0.01 * bends[0] and bends[2] < 1.5 * bends[1], bends
    assert costs[1] < 0.7 * costs[0] and all(b < 1.02 * a for a, b in itertools.pairwise(costs)), costs
