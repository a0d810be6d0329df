"""Every public function of jaxdiff.solvers that is annotated `-> Solver`, put through what holds for all solvers."""

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, gaussian, rational
from helpers.solvers import SOLVERS
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import Level, solvers
from jaxdiff.levels import typed_levels
from jaxdiff.solvers.base import known_denoiser

FEW = {"dpmpp_2m", "ddpm"}  # one with a history and one with noise: the fast tests' share
PROCESSES = {
    "vp": (jd.processes.VP(), 0.6, 0.05),
    "edm": (jd.processes.EDM(), 4.0, 0.15),
    "flow": (jd.processes.Flow(), 0.8, 0.1),
}


def each(names, fast=FEW):
    marks = {name: () if name in fast else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("solver", [pytest.param(SOLVERS[n], id=n, marks=m) for n, m in marks.items()])


EVERY = each(SOLVERS)
ISSUED = (
    "ddpm ddim euler euler_ancestral heun dpm_2 dpm_2_ancestral lms pndm plms ipndm deis dpm_solver dpmpp_2s "
    "dpmpp_2s_ancestral dpmpp_sde dpmpp_2m dpmpp_3m dpmpp_2m_sde dpmpp_3m_sde unipc sa_solver er_sde restart rk4 rk45 "
    "euler_maruyama reverse_diffusion predictor_corrector annealed_langevin consistency"
)


def test_the_table_is_found():
    assert set(ISSUED.split()) <= SOLVERS.keys()


def test_one_evaluation_is_at_the_steps_start():
    """So caches and penalties may take it from there; PNDM's first steps evaluate more, and are refused."""
    x, key = jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
    cur, nxt = (jd.processes.VP()(jnp.float32(t)) for t in (0.6, 0.4))
    refused = set()
    for name, solver in SOLVERS.items():
        if solver.nfe != 1 or solver.next_level or solver.learned_variance:
            continue

        def step(x, solver=solver):
            return solver.step(known_denoiser(solver, x, cur, x), key, x, solver.init(x), cur, nxt)

        try:
            jax.eval_shape(step, x)
        except ValueError as error:
            assert "elsewhere than at a step's start" in str(error)
            refused.add(name)
    assert refused == {"plms", "pndm"}


# Order of convergence. The grid is uniform in lam, which is smooth for all three processes, and stays away from
# sigma = 0 and alpha = 0, where lam is infinite. It is also the exponential integrators' variable, whose history then
# has equal steps. A method's first steps have no history yet and are of a lower order: they end on the exact path.

WARM_UP, FINE = 4, 2000
COARSE = np.array([100, 400])  # numbers of steps, of which the order shows


@partial(jax.jit, static_argnums=0)
def grids(n: int) -> Level:
    """The grids of VP, EDM (VE) and flow, stacked: fields [3, n + 1]."""
    each = [jd.grids.by_lambda(process, n, start=start, end=end) for process, start, end in PROCESSES.values()]
    return Level(*(jnp.stack(field) for field in zip(*each, strict=True)))


def padded(a, axis=0):
    """Its last entry along the axis again and again, so that one program serves all of COARSE."""
    more = COARSE.max() + 1 - a.shape[axis]
    return np.pad(a, [(0, more if i == axis else 0) for i in range(a.ndim)], mode="edge")


def denoise_both(x, level):
    """The exact denoisers of BLOB, for the first half of the batch, and of CLUSTERS."""
    half = x.shape[0] // 2
    return jnp.concatenate([BLOB.denoise(x[:half], level), CLUSTERS.denoise(x[half:], level)])


@jax.jit
def follow(x, levels):
    """dx/dlog s = x - D(x, s), the probability-flow ODE in s = sigma / alpha (Karras 2022, eq. 1), by Runge-Kutta 4.

    Args:
        x: at the first of levels, [B, d].
        levels: fields [N + 1], uniform in log s.

    Returns:
        x at every level, [N + 1, B, d].
    """
    slope = lambda x, u: x - denoise_both(x, Level(u, jnp.ones_like(u), jnp.exp(u)))  # noqa: E731

    def step(x, ends):
        h, (u, end) = ends[1] - ends[0], ends
        k1 = slope(x, u)
        k2 = slope(x + h / 2 * k1, u + h / 2)
        k3 = slope(x + h / 2 * k2, u + h / 2)
        k4 = slope(x + h * k3, end)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x, x

    start = x / levels.alpha[0]
    _, path = jax.lax.scan(step, start, (-levels.lam[:-1], -levels.lam[1:]))
    return jnp.concatenate([start[None], path]) * levels.alpha[:, None, None]


@pytest.fixture(scope="module")
def trajectories():
    """Where the exact flow is at the levels of grids(FINE): [3 processes, FINE + 1, 8 of BLOB and 8 of CLUSTERS, 2]."""
    with jax.enable_x64(True):
        rng, levels = np.random.default_rng(0), grids(FINE)
        ends = [[jax.tree.map(lambda field: field[p, i], levels) for i in (0, -1)] for p in range(3)]  # noqa: B023
        x = jnp.asarray([np.concatenate([m.draw(rng, 8, cur) for m in (BLOB, CLUSTERS)]) for cur, _ in ends])
        exact = jax.vmap(follow)(x, levels)
        for p, (cur, nxt) in enumerate(ends):
            np.testing.assert_allclose(exact[p, -1, :8], BLOB.flow(x[p, :8], cur, nxt), rtol=1e-9)
        return np.asarray(exact)


def errors(solver, exact):
    """Root mean square errors after COARSE steps, the first few of which end on the exact path: [2, 3 processes, 2]."""

    def run(n, levels, exact):
        def step(i, carry):
            x, state = solver.step(denoise_both, jax.random.key(0), *carry, levels.at(i), levels.at(i + 1))
            return jnp.where(i < WARM_UP, exact[i + 1], x), state

        return jax.lax.fori_loop(0, n, step, (exact[0], solver.init(exact[0])))[0]

    run = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
    on_grid = [jax.tree.map(partial(padded, axis=1), (grids(int(n)), exact[:, :: FINE // n])) for n in COARSE]
    ends = np.stack([run(n, *levels_and_exact) for n, levels_and_exact in zip(COARSE, on_grid, strict=True)])
    return np.sqrt(np.mean((ends - exact[:, -1]).reshape(2, 3, 2, -1) ** 2, axis=-1))


ORDERED = [name for name, solver in SOLVERS.items() if solver.order is not None]
DETERMINISTIC = [name for name in ORDERED if not SOLVERS[name].stochastic]  # the others: below


@pytest.mark.usefixtures("x64")
@each(DETERMINISTIC)
def test_order_of_convergence(solver, trajectories):
    coarse, fine = errors(solver, trajectories)
    slopes = np.log(coarse / fine) / np.log(4)
    print("slopes on vp, edm, flow; of a Gaussian, of a mixture:", slopes.round(3).tolist())
    np.testing.assert_allclose(slopes, solver.order, atol=0.15)


# A solver that draws noise has a weak order: that of the mean and the variance at the end. Data is one Gaussian number,
# so that the sample is affine in x_T and in every step's z, with coefficients that a gradient gives without sampling.
NOISY = {name: ("vp", lambda n, s=SOLVERS[name]: s) for name in ORDERED if SOLVERS[name].stochastic} | {
    "ddpm large": ("vp", lambda n: solvers.ddpm("large")),
    "ddpm on flow": ("flow", lambda n: solvers.ddpm()),
    "ddim 0.5": ("vp", lambda n: solvers.ddim(0.5)),
    "ddim 1 on ve": ("edm", lambda n: solvers.ddim(1.0)),
    "euler churn": ("edm", lambda n: solvers.euler(jd.processes.EDM(), 5 / n)),
    "heun churn": ("vp", lambda n: solvers.heun(jd.processes.VP(), 5 / n)),
}
DRAWS = 4  # of one step, at the most


def counted(monkeypatch, z):
    """Make keys numbers and noise z [N, DRAWS]: a step's own key draws z[step, 0], the ones folded from it the next."""
    folded = 1000
    monkeypatch.setattr(import_module("jaxdiff.sample"), "check_key", lambda *args: None)
    monkeypatch.setattr(jax.random, "fold_in", lambda key, i: folded * key + jnp.asarray(i, key.dtype) + 1)

    def normal(key, shape, dtype):
        own = key < folded  # the key of step i is i + 1
        return jnp.full(shape, z[jnp.where(own, key, key // folded) - 1, jnp.where(own, 0, key % folded)])

    monkeypatch.setattr(jd.noise, "_normal", normal)
    return jnp.int32(0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "process", "solver_of"),
    [
        pytest.param(id, *NOISY[id], id=id, marks=() if id in {"ddpm", "heun churn"} else pytest.mark.slow)
        for id in NOISY
    ],
)
@pytest.mark.slow
def test_weak_order_of_convergence(name, process, solver_of, monkeypatch):
    data, errors, none = gaussian([0.7], [[0.3]]), [], np.zeros((COARSE.max(), DRAWS))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def final(x, z, n, levels):
        key = counted(monkeypatch, z)
        return jd.sample(data.denoise, solver_of(n), levels, x[None, None], key, stop=n)[0, 0]

    for n in COARSE:
        levels = jax.tree.map(lambda field: padded(field[list(PROCESSES).index(process)]), grids(int(n)))
        start, end = (data.moments(levels.at(i)) for i in (0, -1))
        mean, (by_x, by_z) = final(start[0][0], none, n, levels)
        var = by_x**2 * start[1][0, 0] + jnp.sum(by_z**2)
        errors.append([abs(mean - end[0][0]), abs(var - end[1][0, 0])])
    errors = np.array(errors)
    assert np.any(by_z != 0)
    # The mean's path is straight for many: no error at any N.
    slopes = np.log(errors[0] / errors[1]) / np.log(4)
    print("weak slopes of mean, variance:", slopes.round(3), "errors at N = 400:", errors[1])
    order = solver_of(1).order
    assert errors[1, 0] < 1e-10 or slopes[0] > order - 0.15
    # ER-SDE draws so little noise that its ODE's third order fades only with N: 2.4, and at N = 1600 2.1.
    assert order - 0.15 < slopes[1] < order + (0.5 if name == "er_sde" else 0.15)


# Limits


def network(params, x, noise, cond, *, key=None):
    """A smooth toy: its velocity mixes the numbers of an example, and looks at the level and the condition."""
    moved = x @ params + noise[:, None]
    if "next_noise" in cond:  # of a solver that gives the network both ends of a step; 0 where that is clean
        moved = moved + cond["next_noise"][:, None]
    return jnp.tanh(moved + cond["shift"] if "shift" in cond else moved)


PARAMS = np.array([[0.5, -0.3, 0.1], [0.2, 0.4, -0.6], [-0.1, 0.7, 0.3]])


def toy(params, cond=None):
    return jd.denoiser(network, params, jd.parameterize.velocity, cond)


def a_batch(dtype=jnp.float32, n=8):
    params, x = jnp.asarray(PARAMS, dtype), jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)), dtype)
    return params, x, jax.random.split(jax.random.key(1), n)


def mid_grid(n=12, start=0.9):
    t = np.linspace(start, 0, n + 1, dtype=np.float32)
    return Level(t, 1 - t, t)


def half(params, x, noise, cond):
    return network(*jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x, noise, cond)))


class Program(NamedTuple):
    """A solver's one program for a_batch and a grid of twelve steps, and what its denoiser left when it ran.

    Attributes:
        run: (levels, x, keys, cond, scale, stop, bits) -> x, with classifier-free guidance of the scale; `bits` are 0:
            the network computes as x; 1: in bfloat16, without a condition; 2: likewise, with answers as x.
        traced: one entry for each time that the denoiser was traced.
        called: one entry for each time that it was evaluated.
    """

    run: Callable
    traced: list
    called: list

    def evaluations(self, *args):
        """Number of the denoiser's evaluations in a run."""
        jax.effects_barrier()
        del self.called[:]
        jax.block_until_ready(self.run(*args))
        jax.effects_barrier()
        return len(self.called)


@cache
def program(solver) -> Program:
    traced, called = [], []

    @jax.jit
    def run(levels, x, keys, cond, scale, stop, bits):
        params = jnp.asarray(PARAMS, x.dtype)

        def denoise(x, *ends):  # also of a network that is given both ends of a step
            traced.append(1)
            jax.debug.callback(lambda: called.append(1))

            def guided():
                uncond = toy(params)(x, *ends)
                return uncond + scale * (toy(params, cond)(x, *ends) - uncond)

            networks = half, lambda *args: half(*args).astype(x.dtype)
            halves = (jd.denoiser(each, params, jd.parameterize.velocity) for each in networks)
            return jax.lax.switch(bits, [guided, *(partial(each, x, *ends) for each in halves)])

        return jd.sample(denoise, solver, levels, x, keys, stop=stop)

    return Program(run, traced, called)


COND = {"shift": np.ones((8, 1), np.float32)}
PLAIN = COND, np.float32(0), 12, 0  # all steps, without guidance


@jax.jit
def clean(x, levels):
    """The toy's answers at each of the levels."""
    return jax.vmap(lambda level: toy(jnp.asarray(PARAMS, x.dtype))(x, level))(levels)


@EVERY
def test_one_step_to_clean_data_is_the_denoiser(solver):
    _, x, keys = a_batch()
    levels = Level(*np.float32([[0.6, 4.0, 0.8], [0.7, 1.0, 0.2], [np.sqrt(0.51), 4.0, 0.8]]))  # like VP, EDM, flow
    for i, expected in enumerate(clean(x, levels)):
        grid = Level(
            *(np.append(field[i], np.full(12, end, np.float32)) for field, end in zip(levels, (0, 1, 0), strict=True))
        )
        out = program(solver).run(grid, x, keys, COND, np.float32(0), 1, 0)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


DIFFERENTIABLE = [name for name, solver in SOLVERS.items() if solver.nfe is not None]  # the others: a `while_loop`


@pytest.mark.usefixtures("x64")
@each(DIFFERENTIABLE, fast={"ddpm"})
def test_values_and_gradients_from_pure_noise_to_clean_data(solver):
    # Flow's t = 1 has alpha = 0 and lam = -inf, its t = 0 has sigma = 0 and lam = +inf.
    params, x, keys = a_batch(jnp.float64, 4)
    levels = jd.grids.by_time(jd.processes.Flow(), 5)
    assert levels.alpha[0] == 0 and levels.sigma[-1] == 0

    def f(x, params, levels):
        return jnp.sum(jnp.sin(jd.sample(toy(params), solver, levels, x, keys)))

    value_and_grad = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))
    value, grads = value_and_grad(x, params, levels)
    assert np.isfinite(value) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    # A guard against NaN must not have cut a true gradient: compare with differences. The grid's ends stay.
    rng = np.random.default_rng(1)
    point = jax.tree.map(np.asarray, (x, params, levels))
    ways = jax.tree.map(lambda a: rng.normal(size=a.shape), point)
    for field in ways[2]:
        field[[0, -1]] = 0

    def moved(i, h):
        there = [*point]
        there[i] = jax.tree.map(lambda a, w: a + h * w, point[i], ways[i])
        return value_and_grad(*there)[0]

    for i in range(3):
        along = sum(np.vdot(g, w) for g, w in zip(jax.tree.leaves(grads[i]), jax.tree.leaves(ways[i]), strict=True))
        np.testing.assert_allclose(along, (moved(i, 1e-6) - moved(i, -1e-6)) / 2e-6, rtol=1e-5, atol=1e-8)


# Invariances


@each(SOLVERS, fast={"ddpm"})
def test_an_example_is_its_keys_alone_in_any_batch_eager_or_compiled_on_one_device_or_eight(solver):
    params, x, keys = a_batch()
    sample = lambda x, keys: jd.sample(toy(params), solver, mid_grid(), x, keys)  # noqa: E731
    run, close = program(solver).run, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    together, chosen = np.asarray(run(mid_grid(), x, keys, *PLAIN)), np.array([6, 1, 3])
    assert np.array_equal(run(mid_grid(), x, jnp.roll(keys, 1), *PLAIN), together) is not solver.stochastic
    close(sample(x[chosen], keys[chosen]), together[chosen])  # not compiled
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.jit(sample)(*jax.device_put((x, keys), NamedSharding(mesh, PartitionSpec("data"))))
    assert sharded.sharding.num_devices == 8
    close(sharded, together)


@EVERY
def test_turning_a_knob_compiles_nothing_and_nfe_is_the_number_of_evaluations(solver):
    _, x, keys = a_batch()
    run, traced, _ = program(solver)
    first = run(mid_grid(), x, keys, COND, np.float32(2), 12, 0)
    sites = len(traced)
    others = [
        run(mid_grid(), x, keys, COND, np.float32(2), 11, 0),
        run(mid_grid(start=0.7), x, keys, COND, np.float32(2), 12, 0),
        run(mid_grid(), x, keys, COND, np.float32(3), 12, 0),
        run(mid_grid(), x, keys, jax.tree.map(np.negative, COND), np.float32(2), 12, 0),
        run(mid_grid(), x, jax.random.split(jax.random.key(2), 8), COND, np.float32(2), 12, 0),
    ]
    assert len(traced) == sites and run._cache_size() == 1
    changed = [not np.array_equal(first, other) for other in others]
    assert changed == [True, True, True, True, solver.stochastic]
    if solver.nfe is not None:  # of the fifth step: a warm-up may take more
        four, five = (program(solver).evaluations(mid_grid(), x, keys, *PLAIN[:2], stop, 0) for stop in (4, 5))
        assert five - four == solver.nfe and sites <= solver.nfe


def _size(jaxpr) -> int:
    """Number of equations, with those of inner programs."""
    inner = [j for eqn in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(eqn.params)]
    return len(jaxpr.eqns) + sum(_size(j) for j in inner)


@EVERY
def test_the_program_does_not_grow_with_the_number_of_steps(solver):
    params, x, keys = a_batch()

    def size(n):
        return _size(jax.make_jaxpr(lambda levels: jd.sample(toy(params), solver, levels, x, keys))(mid_grid(n)).jaxpr)

    assert size(10) == size(1000) > 20


@pytest.mark.usefixtures("x64")
@EVERY
def test_float32_stays_close_to_float64(solver, monkeypatch):
    # The same noise for both; EDM's whole range of sigma, over which float32 has to carry 1e-3..80.
    normal = jd.noise._normal
    monkeypatch.setattr(jd.noise, "_normal", lambda key, shape, dtype: normal(key, shape, jnp.float32).astype(dtype))
    sigma = np.append(np.geomspace(80.0, 0.002, 40), 0)
    levels = Level(sigma, np.ones_like(sigma), sigma)
    key = jax.random.key(0)
    start = np.random.default_rng(0).normal(size=(64, 2)) * 80

    @jax.jit
    def run(*x):
        return [jd.sample(lambda x, level, *nxt: rational(x, level), solver, levels, x, key) for x in x]

    out = run(np.float32(start), start)
    assert out[0].dtype == jnp.float32 and out[1].dtype == jnp.float64
    np.testing.assert_allclose(out[0], out[1], atol=2e-4)


@EVERY
def test_a_bfloat16_network_costs_no_more_than_its_own_rounding(solver):
    _, x, keys = a_batch()
    exact, out, same = (program(solver).run(mid_grid(), x, keys, *PLAIN[:3], bits) for bits in range(3))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.03)  # answers are off by 2^-8 of their size
    assert not np.array_equal(out, exact)
    # A sampler that took the answers' type for x or a coefficient would add up more.
    np.testing.assert_allclose(out, same, rtol=1e-5, atol=1e-6)


EVERYWHERE = {
    "vp": (jd.processes.VP(), np.linspace(1, 0, 7)),
    "sub-vp": (jd.processes.SubVP(), np.linspace(1, 0, 7)),
    "ve": (jd.processes.VE(0.02, 20.0), np.linspace(1, 0, 7)),
    "edm": (jd.processes.EDM(), np.append(np.geomspace(20, 0.1, 6), 0)),
    "flow": (jd.processes.Flow(), np.linspace(0.98, 0, 7)),
}


ROWS = [jd.parameterize.eps, jd.parameterize.x0, jd.parameterize.v, jd.parameterize.velocity]


class OneOf(NamedTuple):
    """The process of a traced number, so that one program serves all."""

    number: jax.Array

    def __call__(self, t):
        return jax.lax.switch(self.number, [process for process, _ in EVERYWHERE.values()], t)

    def time(self, lam):
        return jax.lax.switch(self.number, [process.time for process, _ in EVERYWHERE.values()], lam)


def knowing(process, row):
    """A network that knows data from N(0.3, 0.5^2), is told t, and predicts what the row says."""

    def apply(params, x, t, cond):
        level = process(t).expand_to(x)
        var = 0.25 * jnp.square(level.alpha) + jnp.square(level.sigma)
        x0 = (0.25 * level.alpha * x + 0.3 * jnp.square(level.sigma)) / var
        return jd.parameterize.target(row, x0, x, level)

    return apply


@pytest.mark.usefixtures("x64")
@each(SOLVERS, fast=())
def test_every_process_and_every_prediction_in_any_shape(solver, request):
    """Networks that know Gaussian data exactly and say so as eps, x0, v or velocity give one and the same sample."""
    make, x = getattr(solvers, request.node.callspec.id), np.random.default_rng(0).normal(size=(2, 3, 1, 2))
    # What is inside of a step has to be named by the process, since these networks are told t alone.
    inner = "process" in inspect.signature(make).parameters
    levels = [process(jnp.asarray(ts)) for process, ts in EVERYWHERE.values()]
    levels = Level(*(jnp.stack(field) for field in zip(*levels, strict=True)))

    @jax.jit
    def ends(x):
        def end(pair):
            process, row = OneOf(pair[0]), partial(jax.lax.switch, pair[1], ROWS)
            known = jd.denoiser(knowing(process, row), None, row)
            grid = Level(*(field[pair[0]] for field in levels))
            denoise = lambda x, level, *nxt: known(x, level)  # noqa: E731
            method = make(process=process) if inner else solver
            return jd.sample(denoise, method, grid, grid.sigma[0] * x, jax.random.key(0))

        pairs = jnp.stack(jnp.meshgrid(jnp.arange(len(EVERYWHERE)), jnp.arange(len(ROWS)), indexing="xy"), axis=-1)
        return jax.lax.map(jax.vmap(end), pairs)

    out = np.swapaxes(ends(jnp.asarray(x)), 0, 1)
    assert out.shape == (len(EVERYWHERE), len(ROWS), *x.shape) and np.all(np.isfinite(out))
    for name, of_rows in zip(EVERYWHERE, out, strict=True):
        for row, end in zip(ROWS, of_rows, strict=True):
            np.testing.assert_allclose(end, of_rows[0], rtol=1e-5, atol=1e-6, err_msg=f"{name}, {row.__name__}")
    assert np.ptp(out[:, 0], axis=0).max() > 0.1  # the processes are not one


def test_times_between_levels_are_not_rounded_to_half_precision():
    """Of a thousand, bfloat16 has every fourth."""
    process, seen = jd.processes.Discrete.linear(1000), []
    cur, nxt = (typed_levels(process(jnp.asarray(t)), jnp.zeros((), jnp.bfloat16)) for t in (753, 501))

    def denoise(x, level):
        seen.append(level.t)
        return 0.5 * x

    x = jnp.ones((2, 3), jnp.bfloat16)
    for solver in (
        solvers.heun(process=process, churn=0.01),
        solvers.dpm_2(process),
        solvers.rk4(),
        solvers.pndm(process),
    ):
        jax.eval_shape(lambda x: solver.step(denoise, jax.random.key(0), x, solver.init(x), cur, nxt)[0], x)  # noqa: B023
    assert {t.dtype.name for t in seen} <= {"int32", "float32"}
    seen.clear()
    solvers.heun(process=process, churn=0.01).step(denoise, jax.random.key(0), x, (), cur, nxt)
    assert 753 < float(seen[0]) < 760 and float(seen[0]) != float(seen[0].astype(jnp.bfloat16))
