"""Replacement, DDRM, decoupled annealing, particles and RED-diff, of Gaussian data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import gaussian, rational
from helpers.law import affine, apart, grid, law, problem
from helpers.optimized import OPTIMIZED

import jaxdiff as jd
from jaxdiff import Level, inverse, solvers
from jaxdiff.inverse import decoupled, operators

VE, VP = jd.processes.EDM(), jd.processes.VP()
KEY = jax.random.key(7, impl="rbg")
GRID = Level(*(jnp.array(field, jnp.float32) for field in ((1, 0.6, 0.3, 0), (0, 0.4, 0.7, 1), (1, 0.6, 0.3, 0))))


def moments(x):
    return np.mean(x, axis=0), np.cov(np.asarray(x, np.float64).T)


def solver_of(method, y, known, std, scale):
    """A method, of measurements through a mask; not each of them takes all."""
    operator = operators.mask(known)

    def misfit(x0):
        return jnp.sum(jnp.square(operator.apply(x0) - y), axis=1) / (2 * jnp.square(std))

    return {
        "replace": lambda: inverse.replace(solvers.ddim(), operator, y),
        "repaint": lambda: inverse.replace(solvers.ddpm(), operator, y, resample=1),
        "mcg": lambda: inverse.mcg(solvers.ddim(), operator, y, scale),
        "dps_normalized": lambda: inverse.dps_normalized(solvers.ddpm(), operator, y, scale),
        "ddrm": lambda: inverse.ddrm(operator, y, std),
        "daps": lambda: inverse.daps(inverse.exact(operator, y, std)),
        "daps, langevin": lambda: inverse.daps(inverse.langevin(misfit, 10.0, steps=3), steps=2),
        "split_gibbs": lambda: inverse.split_gibbs(inverse.exact(operator, y, std), steps=2),
    }[method]()


SCALED, NOISY = ("mcg", "dps_normalized"), ("ddrm", "daps", "daps, langevin", "split_gibbs")


@pytest.mark.parametrize(
    "method",
    ["dps_normalized", *(pytest.param(m, marks=pytest.mark.slow) for m in ("replace", "repaint", "mcg", *NOISY))],
)
def test_an_example_depends_on_its_own_key_and_measurement_and_nothing_that_is_turned_compiles(method):
    traces = []

    @jax.jit
    def run(y, known, std, scale, keys):
        traces.append(method)
        x = jd.noise.prior(GRID, jd.noise.fold_in(keys, 0), y.shape)
        return jd.sample(rational, solver_of(method, y, known, std, scale), GRID, x, jd.noise.fold_in(keys, 1))

    known = jnp.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    given = {
        "y": known * jnp.array([[0.5, 0.0, -1.0], [0.3, 0.8, 0.0]]),
        "known": known,
        "std": jnp.array([0.3, 0.5]),
        "scale": jnp.array([0.4, 0.7]),
        "keys": jax.random.split(jax.random.key(1), 2),
    }
    drawn = run(*given.values())
    assert drawn.dtype == jnp.float32 and np.all(np.isfinite(drawn))
    for name, other in {
        "y": given["y"].at[1, 0].add(1),
        "known": known.at[1, 2].set(1),
        "std": given["std"].at[1].add(1),
        "scale": given["scale"].at[1].add(1),
        "keys": given["keys"].at[1].set(jax.random.key(5)),
    }.items():
        changed = run(*(given | {name: other}).values())
        np.testing.assert_array_equal(changed[0], drawn[0], err_msg=name)
        used = {"std": method in NOISY, "scale": method in SCALED}.get(name, True)
        assert used == (not np.array_equal(changed[1], drawn[1])), name
    np.testing.assert_array_equal(run(*(a[::-1] for a in given.values())), drawn[::-1])
    assert len(traces) == 1


# Replacement


@pytest.mark.slow
def test_a_replaced_step_sets_what_is_measured_and_leaves_the_rest():
    """On the measured part: alpha y + sigma z; beside it the solver's step; the last step gives y itself."""
    known = jnp.array([1.0, 0.0, 1.0, 0.0])
    y = known[None] * jnp.linspace(-1, 1, 20_000)[:, None]
    x = jnp.asarray(np.random.default_rng(0).normal(size=y.shape), jnp.float32)
    cur, nxt, last = (GRID.at(i) for i in (1, 2, 3))

    @jax.jit
    def run(x):
        solver = inverse.replace(solvers.ddim(), operators.mask(known), y)
        plain = solvers.ddim().step(rational, KEY, x, (), cur, nxt)[0]
        ends = [solver.step(rational, KEY, x, (), cur, level)[0] for level in (nxt, last)]
        return plain, *ends

    # Where nothing is measured, also of a solver that draws noise, the step is its own.
    nothing = operators.mask(jnp.zeros(known.shape)), jnp.zeros_like(y)
    of = lambda solver: solver.step(rational, KEY, x, (), cur, nxt)[0]  # noqa: E731
    for without in (inverse.replace(solvers.ddim(1.0), *nothing), inverse.mcg(solvers.ddim(1.0), *nothing, 0.0)):
        np.testing.assert_array_equal(of(without), of(solvers.ddim(1.0)))
    # What is put back has other noise than the step.
    put = (of(inverse.replace(solvers.ddim(1.0), operators.mask(known), y)) - nxt.alpha * y)[:, ::2]
    assert abs(np.corrcoef(put[:, 0], jd.noise.normal_like(KEY, x)[:, 0])[0, 1]) < 4 / 141

    plain, replaced, end = run(x)
    np.testing.assert_allclose(replaced[:, 1::2], plain[:, 1::2], atol=1e-6)
    np.testing.assert_allclose(end[:, ::2], y[:, ::2], atol=1e-6)
    z = (replaced - nxt.alpha * y)[:, ::2] / nxt.sigma
    assert abs(z.mean()) < 4 / 200 and abs(z.std() - 1) < 4 / 280
    assert abs(np.corrcoef(z[:, 0], x[:, 0])[0, 1]) < 4 / 141


@pytest.mark.slow
def test_replacement_of_averages_keeps_what_they_do_not_see_and_mcg_ends_at_the_measurement():
    operator = operators.matrix(jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 2.0]]))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    y = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    unseen = np.array([2.0, -2.0, 1.0]) / 3

    @jax.jit
    def run(x):
        step = lambda solver, nxt: solver.step(rational, KEY, x, (), GRID.at(1), nxt)[0]  # noqa: E731
        replaced = step(inverse.replace(solvers.ddim(), operator, y), GRID.at(2))
        mcg = inverse.mcg(solvers.ddim(), operator, y, 0.3)
        guided = step(inverse.dps_normalized(solvers.ddim(), operator, y, 0.3), GRID.at(2))
        return step(solvers.ddim(), GRID.at(2)), replaced, guided, step(mcg, GRID.at(2)), step(mcg, GRID.at(3))

    plain, replaced, guided, mcg, end = run(x)
    np.testing.assert_allclose(replaced @ unseen, plain @ unseen, atol=1e-5)
    np.testing.assert_allclose(mcg @ unseen, guided @ unseen, atol=1e-5)
    assert np.linalg.norm(operator.apply(end) - y) < 1e-5 * np.linalg.norm(y)


@pytest.mark.parametrize(("solver", "count"), [(solvers.ddim(), 1), (solvers.heun(), 2), (solvers.ddpm(), 1)])
def test_the_published_step_of_dps_evaluates_as_often_as_its_solver(solver, count):
    """Whose evaluation at the step's start is that of the gradient; the compiler would not merge the two."""
    calls = []

    def counted(x, level):
        calls.append(level)
        return rational(x, level)

    guided = inverse.dps_normalized(solver, operators.mask(jnp.ones(2)), jnp.ones((1, 2)))
    take = lambda x: guided.step(counted, KEY, x, guided.init(x), GRID.at(1), GRID.at(2))[0]  # noqa: E731
    jax.eval_shape(take, jnp.ones((1, 2)))
    assert len(calls) == count


def test_a_history_is_refused_in_resampling():
    operator, y = operators.mask(jnp.ones(2)), jnp.ones((1, 2))
    for solver, x in ((solvers.dpmpp_2m(), jnp.ones((1, 2))), (solvers.plms(), jnp.ones((1, 2)))):
        with pytest.raises(ValueError, match="has a history"):
            jd.sample(rational, inverse.replace(solver, operator, y, resample=1), GRID, x, KEY)
    path = jd.solvers.ddim(1.0, noise_sampler=jd.noise.brownian(jax.random.key(0)))
    with pytest.raises(ValueError, match="draws the same noise when a step is taken again"):
        jd.sample(rational, inverse.replace(path, operator, y, resample=1), GRID, jnp.ones((1, 2)), KEY)
    with pytest.raises(ValueError, match="resample is an integer of at least 0"):
        inverse.replace(solvers.ddpm(), operator, y, resample=-1)


def test_a_solver_without_noise_is_resampled_with_the_noise_of_one_path():
    """What is put back is the same at all levels, and only what harmonizes it is drawn anew."""
    operator, y, x = operators.mask(jnp.array([1.0, 0.0])), jnp.array([[0.7, 0.0]]), jnp.ones((1, 2))
    solver = inverse.replace(solvers.ddim(), operator, y, noise=jnp.ones((1, 2)))
    again = inverse.replace(solvers.ddim(), operator, y, noise=jnp.ones((1, 2)), resample=2)
    assert not solver.stochastic and again.stochastic
    run = lambda solver, seed: jd.sample(rational, solver, GRID, x, jax.random.key(seed))  # noqa: E731
    np.testing.assert_array_equal(run(solver, 0), run(solver, 1))
    first, second = run(again, 0), run(again, 1)
    np.testing.assert_allclose((first[0, 0], second[0, 0]), 0.7, rtol=1e-6)
    assert first[0, 1] != second[0, 1]


@pytest.mark.slow
def test_the_mean_of_replacement_comes_nearer_with_resampling():
    n = 5_000
    linear = problem(4, 2, seed=3)
    linear = linear._replace(a=np.eye(4)[:2], y=np.array([1.5, -1.0]) + linear.mean[:2], std=0.0)
    operator = operators.mask(jnp.array([1.0, 1.0, 0.0, 0.0]))
    y = jnp.broadcast_to(jnp.asarray(np.append(linear.y, [0, 0]), jnp.float32)[None], (n, 4))
    levels = jd.levels.append_clean(grid(VP, 40, 50.0, 0.02))
    mean = linear.posterior()[0]
    denoise, errors = gaussian(linear.mean, linear.cov).denoise, []
    for resample in (0, 2, 8):
        solver = inverse.replace(solvers.ddpm(), operator, y, resample=resample)
        x = jd.noise.prior(levels, KEY, (n, 4))
        run = jax.jit(lambda x, s=solver: jd.sample(denoise, s, levels, x, KEY), compiler_options=OPTIMIZED)
        errors.append(np.linalg.norm(np.mean(run(x), axis=0) - mean))

    assert np.all(np.diff(errors) < 0) and errors[-1] < 0.65 * errors[0]


# DDRM


def ddrm_step(x, z, denoised, levels, problem, eta, eta_b):
    """Kawar et al. 2022, eq. 7-8, of one example in numpy: in the basis of V, with x / alpha."""
    (a_t, s_t), (a_s, s_s) = levels
    u, s, vt = np.linalg.svd(problem.a)
    theta, xt, eps = vt @ denoised, vt @ x / a_t, vt @ z
    ybar, noise, out = u.T @ problem.y, s_s / a_s, np.zeros(len(x))
    for i in range(len(x)):
        if i >= len(s):
            mean = theta[i] + np.sqrt(1 - eta**2) * noise * (xt[i] - theta[i]) / (s_t / a_t)
            std = eta * noise
        elif noise < problem.std / s[i]:
            mean = theta[i] + np.sqrt(1 - eta**2) * noise * (ybar[i] / s[i] - theta[i]) / (problem.std / s[i])
            std = eta * noise
        else:
            mean = (1 - eta_b) * theta[i] + eta_b * ybar[i] / s[i]
            std = np.sqrt(noise**2 - (problem.std / s[i] * eta_b) ** 2)
        out[i] = mean + std * eps[i]
    return a_s * vt.T @ out


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_ddrm_is_the_papers_in_its_three_cases():
    linear = problem(5, 3, std=0.4)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 3, 5))
    operator = operators.matrix(jnp.asarray(linear.a))
    y = jnp.broadcast_to(jnp.asarray(linear.y)[None], (3, 3))
    ratio = linear.std / np.linalg.svd(linear.a)[1]
    # Next levels with more noise than all directions, between them, and than none.
    ends = [1.2 * ratio.max(), np.sqrt(ratio[0] * ratio[-1]), 0.5 * ratio.min()]

    @jax.jit
    def run(std, cur, nxt):
        solver = inverse.ddrm(operator, y, std, eta=0.7, eta_b=0.9, noise_sampler=lambda *_: jnp.asarray(z))
        return solver.step(rational, jax.random.key(0), jnp.asarray(x), (), cur, nxt)[0]

    for end in ends:
        cur, nxt = (jax.tree.map(jnp.float64, VP(VP.time(-jnp.log(s)))) for s in (3.0, end))
        denoised = np.asarray(rational(jnp.asarray(x), cur))
        levels = [(float(level.alpha), float(level.sigma)) for level in (cur, nxt)]
        drawn = run(jnp.full(3, linear.std), cur, nxt)
        for i in range(3):
            exact = ddrm_step(x[i], z[i], denoised[i], levels, linear, 0.7, 0.9)
            np.testing.assert_allclose(drawn[i], exact, rtol=1e-9, err_msg=f"to {end:.3}")


def test_ddrm_fits_a_measurement_without_noise_and_needs_a_decomposition():
    operator = operators.average(2)
    y = operator.apply(jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32))
    run = jax.jit(lambda std: jd.sample(rational, inverse.ddrm(operator, y, std), GRID, jnp.ones((2, 4, 4, 1)), KEY))
    assert np.linalg.norm(operator.apply(run(jnp.zeros(2))) - y) <= 1e-5 * np.linalg.norm(y)
    with pytest.raises(ValueError, match="needs an operator with a decomposition"):
        inverse.ddrm(operators.linear(lambda x: x, (2,)), jnp.ones((1, 2)), 0.1)
    with pytest.raises(ValueError, match="eta_b must be"):
        inverse.ddrm(operator, y, 0.1, eta_b=1.5)
    with pytest.raises(ValueError, match="std is a number or one for each of 2 examples"):
        jax.eval_shape(run, jnp.zeros(3))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_ddrm_without_noise_is_right_for_data_of_one_variance_unless_it_draws_noise_anew():
    """In many steps, at any level. Else what A does not see has another variance, at which its steps settle.

    At s = sigma / alpha, a variance v becomes (c + s^2 q)^2 / (c + s^2)^2 v + s^2 eta^2, with q = (1 - eta^2)^1/2: the
    same for v = (1 + q) (c + s^2)^2 / (2 c + (1 + q) s^2), which at s = 0 is (1 + q) / 2 of the data's.
    """
    c, s = 0.49, 0.4
    linear = problem(isotropic=True)
    linear = linear._replace(cov=c * linear.cov, std=0.0)
    operator, denoise = operators.matrix(jnp.asarray(linear.a)), gaussian(linear.mean, linear.cov).denoise
    levels = grid(VP, 2000, 20.0, s)

    @jax.jit
    def run(mean, cov, eta):
        y = jnp.broadcast_to(jnp.asarray(linear.y)[None], (1 + 2 * len(mean), len(linear.y)))
        return law(denoise, lambda z: inverse.ddrm(operator, y, 0.0, eta=eta, noise_sampler=z), levels, mean, cov)

    mean, cov = linear.noised(Level(0.0, 1.0, s))
    unseen = np.eye(6) - np.linalg.pinv(linear.a) @ linear.a
    for eta in (0.0, 0.85):
        q, alpha = np.sqrt(1 - eta**2), float(levels.alpha[-1])
        settled = c + s**2 if eta == 0 else (1 + q) * (c + s**2) ** 2 / (2 * c + (1 + q) * s**2)
        kept = cov + (settled - c - s**2) * unseen
        drawn = [np.asarray(a) / alpha**n for n, a in enumerate(run(*linear.noised(levels.at(0)), eta), 1)]
        assert max(apart(drawn, (mean, kept))) < 3e-3


@pytest.mark.slow
def test_ddrm_divides_no_rounding_errors_by_small_singular_values():
    """A blur that keeps almost nothing of some frequencies, in float32: what is drawn has the size of the data."""
    bell = np.exp(-0.5 * np.square(np.arange(-4, 5) / 1.5))
    operator = operators.blur(jnp.asarray(np.outer(bell, bell) / bell.sum() ** 2, jnp.float32))
    truth, noise = np.random.default_rng(0).normal(size=(2, 3, 28, 28, 1)).astype(np.float32)
    y = operator.apply(jnp.asarray(truth)) + 0.05 * noise
    denoise = lambda x, level: level.alpha * x / (level.alpha**2 + level.sigma**2)  # noqa: E731
    levels = jd.grids.karras(VP, 30, sigma_min=0.01, sigma_max=80.0)
    x = jd.noise.prior(levels, KEY, y.shape)
    drawn = jax.jit(lambda x: jd.sample(denoise, inverse.ddrm(operator, y, 0.05), levels, x, KEY))(x)
    assert 0.5 < np.std(drawn) < 1.5


# Decoupled annealing


def daps_law(monkeypatch, linear, levels, **options):
    """The law after a grid of steps, each of which draws two noises like x and one like y."""
    n, m = len(linear.mean), len(linear.a)
    operator, denoise = operators.matrix(jnp.asarray(linear.a)), gaussian(linear.mean, linear.cov).denoise

    def body(moments, pair):
        def step(x, z):
            drawn = iter([z[:, :n], z[:, n : n + m], z[:, n + m :]])
            monkeypatch.setattr(decoupled, "normal_like", lambda key, like: next(drawn))
            y = jnp.broadcast_to(jnp.asarray(linear.y)[None], (len(x), m))
            solver = inverse.daps(inverse.exact(operator, y, linear.std), **options)
            return solver.step(denoise, jax.random.key(0), x, (), *pair)[0]

        return affine(step, *moments, noises=2 * n + m), None

    begin = tuple(map(jnp.asarray, linear.noised(levels.at(0))))
    pairs = levels.at(slice(None, -1)), levels.at(slice(1, None))
    mean, cov = jax.jit(lambda begin: jax.lax.scan(body, begin, pairs)[0])(begin)
    return np.asarray(mean) / float(levels.alpha[-1]), np.asarray(cov) / float(levels.alpha[-1]) ** 2


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_decoupled_annealing_is_exact_for_data_of_one_variance_in_any_number_of_steps(monkeypatch):
    linear = problem(isotropic=True)
    linear = linear._replace(cov=0.49 * linear.cov)
    drawn = daps_law(monkeypatch, linear, grid(VP, 2, 20.0, 0.01), prior_std=0.7)
    assert max(apart(drawn, linear.noised(Level(0.0, 1.0, 0.01)))) < 1e-12


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_decoupled_annealing_nears_the_posterior_of_any_gaussian(monkeypatch):
    linear = problem()
    exact = linear.noised(Level(0.0, 1.0, 0.01))
    errors = [apart(daps_law(monkeypatch, linear, grid(VE, n, 20.0, 0.01)), exact) for n in (50, 200, 800)]

    assert np.all(np.diff(errors, axis=0) < 0) and max(errors[-1]) < 0.03


@pytest.mark.slow
def test_split_gibbs_draws_from_its_joint_law_of_any_gaussian_and_follows_it_as_rho_falls():
    """Sweeps at one level: z is of the prior widened by rho, given y. So it is where rho falls slowly."""
    linear, count = problem(2, 1), 10_000
    operator = operators.matrix(jnp.asarray(linear.a, jnp.float32))
    y = jnp.broadcast_to(jnp.asarray(linear.y, jnp.float32)[None], (count, 1))
    denoise = gaussian(linear.mean, linear.cov).denoise
    solver = inverse.split_gibbs(inverse.exact(operator, y, linear.std), steps=80)
    rho = jnp.float32(0.8)

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def sweep(x, cur, nxt):
        pairs = jax.random.split(KEY, 40), cur, nxt
        return jax.lax.scan(lambda x, of: (solver.step(denoise, of[0], x, (), *of[1:])[0], None), x, pairs)[0]

    level = jax.tree.map(lambda a: jnp.broadcast_to(a, 40), VE(rho))
    wide = linear._replace(cov=linear.cov + float(rho) ** 2 * np.eye(2)).posterior()
    falling = VE(jnp.geomspace(5.0, 0.2, 41))
    ends = linear._replace(cov=linear.cov + 0.04 * np.eye(2)).posterior()
    start = jnp.zeros((count, 2)) + jnp.float32(2.0) * jax.random.normal(KEY, (count, 2))
    fall = falling.at(slice(None, -1)), falling.at(slice(1, None))
    # Of the wider laws is left what 40 levels fall too fast for.
    for pair, expected, within in (((level, level), wide, 0.06), (fall, ends, 0.1)):
        mean, cov = moments(sweep(start, *pair))
        scale = np.sqrt(np.trace(expected[1]))
        np.testing.assert_allclose(mean, expected[0], atol=within * scale)
        np.testing.assert_allclose(cov, expected[1], atol=within * scale**2)


@pytest.mark.slow
def test_langevin_draws_as_exact_does():
    linear = problem(3, 2)
    operator = operators.matrix(jnp.asarray(linear.a, jnp.float32))
    y = jnp.broadcast_to(jnp.asarray(linear.y, jnp.float32)[None], (10_000, 2))
    loss = lambda x0: jnp.sum(jnp.square(operator.apply(x0) - y), axis=1) / (2 * linear.std**2)  # noqa: E731
    curvature = float(np.linalg.norm(linear.a, 2) ** 2 / linear.std**2)
    x0, level = jnp.broadcast_to(jnp.asarray(linear.mean, jnp.float32)[None], (10_000, 3)), GRID.at(1)
    samplers = inverse.exact(operator, y, linear.std), inverse.langevin(loss, curvature, steps=400, step_size=0.1)
    run = jax.jit(lambda x0: [f(KEY, x0, jnp.float32(0.8), level) for f in samplers], compiler_options=OPTIMIZED)
    exact = linear._replace(cov=0.64 * np.eye(3)).posterior()
    for drawn, bias in zip(run(x0), (0.01, 0.05), strict=True):
        mean, cov = moments(drawn)
        np.testing.assert_allclose(mean, exact[0], atol=4 * 0.8 / 100)
        np.testing.assert_allclose(cov, exact[1], atol=0.64 * (0.02 + bias))


@pytest.mark.slow
def test_langevin_draws_from_a_posterior_that_is_no_gaussian():
    """Two numbers with losses that are not quadratic: mean, variance and third moment by quadrature."""
    count, r = 20_000, 0.8
    x0 = jnp.broadcast_to(jnp.array([[0.3, -0.5]]), (count, 2))
    each = lambda x, xp: 2 * xp.log(xp.cosh(3 * (x - 0.5)))  # noqa: E731  its curvature is 18 at most
    loss = lambda x: jnp.sum(each(x, jnp), axis=1)  # noqa: E731
    sampler = inverse.langevin(loss, 18.0, steps=800, step_size=0.05)
    draw = jax.jit(lambda x0: sampler(KEY, x0, jnp.float32(r), GRID.at(1)), compiler_options=OPTIMIZED)
    drawn = np.asarray(draw(x0), np.float64)
    x = np.linspace(-4, 4, 4001)
    for i in range(2):
        density = np.exp(-((x - float(x0[0, i])) ** 2) / (2 * r**2) - each(x, np))
        density /= density.sum()
        mean, std = density @ x, np.sqrt(density @ x**2 - (density @ x) ** 2)
        for power, spread in ((1, 1), (2, np.sqrt(2)), (3, np.sqrt(15))):
            got, exact = np.mean(((drawn[:, i] - mean) / std) ** power), density @ ((x - mean) / std) ** power
            assert abs(got - exact) < 4 * spread / np.sqrt(count) + 0.02


def test_langevin_of_data_without_spread_is_x0_hat():
    x0 = jnp.array([[0.3, -0.2], [2.0, 1.0]])
    sampler = inverse.langevin(lambda x: jnp.sum(jnp.square(x), axis=1), 2.0, steps=2)
    np.testing.assert_array_equal(sampler(KEY, x0, jnp.float32(0), GRID.at(1)), x0)


@pytest.mark.slow
def test_complex_measurements_have_noise_in_both_parts():
    """x0_hat is of no weight: what is left is y and its noise, with the standard deviation of each part."""
    operator = operators.fourier(jnp.ones((1, 1)))
    y = jax.lax.complex(jnp.full((20_000, 1, 1), 0.5), jnp.full((20_000, 1, 1), -2.0))
    x0 = jnp.zeros((20_000, 1, 1, 2))
    drawn = jax.jit(lambda x0: inverse.exact(operator, y, 0.3)(KEY, x0, jnp.float32(100), GRID.at(1)))(x0)
    mean, cov = moments(drawn.reshape(-1, 2))
    np.testing.assert_allclose(mean, [0.5, -2.0], atol=0.01)
    np.testing.assert_allclose(cov, 0.09 * np.eye(2), atol=0.004)


@pytest.mark.slow
def test_steps_to_x0_hat_are_those_of_ddim():
    x, cur, nxt = jnp.array([[0.3, -0.2]]), VE(jnp.float32(2.0)), VE(jnp.float32(1.0))
    seen = []
    sampler = lambda key, x0, r, level: seen.append((x0, r)) or x0  # noqa: E731
    inverse.daps(sampler, steps=3, prior_std=3.0).step(rational, KEY, x, (), cur, nxt)
    inverse.split_gibbs(sampler, steps=3).step(rational, KEY, x, (), cur, nxt)
    np.testing.assert_allclose(seen[1][1], nxt.sigma / nxt.alpha)
    # The last of many inner steps ends a seventh power above clean data.
    assert np.isfinite(inverse.daps(sampler, steps=40).step(rational, KEY, x, (), cur, nxt)[0]).all()
    levels = VE(2.0 * (1 - jnp.arange(4) / 3) ** 7)
    np.testing.assert_allclose(seen[0][0], jd.sample(rational, solvers.ddim(), levels, x, KEY), rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], np.sqrt(9 * 4 / (9 + 4)), rtol=1e-6)


# Particles


def particles(linear, levels, k, runs):
    """Estimates of the posterior mean and of log Z, [runs, ...]."""
    prior = gaussian(linear.mean, linear.cov).denoise
    y = jnp.broadcast_to(jnp.asarray(linear.y, jnp.float32)[None], (runs, len(linear.y)))

    @jax.jit
    def run(x, keys):
        solver = inverse.twisted(operators.matrix(jnp.asarray(linear.a, jnp.float32)), y, linear.std)
        x, state = jd.sample_state(prior, solver, levels, x, keys)
        return jnp.mean(x, axis=1), state.log_z

    keys = jax.random.split(jax.random.key(5), runs)
    return tuple(map(np.asarray, run(jd.noise.prior(levels, keys, (runs, k, len(linear.mean))), keys)))


def of_model(linear, levels):
    """Posterior mean and log Z of what the unconditional sampler draws: Gaussian, and not quite the data's."""
    denoise, n = gaussian(linear.mean, linear.cov).denoise, len(linear.mean)
    with jax.enable_x64(True):
        levels = Level(*(jnp.asarray(field, jnp.float64) for field in levels))
        begin = jnp.zeros(n), levels.sigma[0] ** 2 * jnp.eye(n)
        mean, cov = jax.jit(lambda *of: law(denoise, lambda z: solvers.ddpm(noise_sampler=z), *of))(levels, *begin)
    model = linear._replace(mean=np.asarray(mean), cov=np.asarray(cov))
    inner = model.a @ model.cov @ model.a.T + linear.std**2 * np.eye(len(linear.y))
    away = linear.y - model.a @ model.mean
    log_z = -0.5 * (away @ np.linalg.solve(inner, away) + np.linalg.slogdet(2 * np.pi * inner)[1])
    return model.posterior()[0], log_z


@pytest.mark.slow
def test_particles_estimate_the_mean_and_log_z_with_errors_as_one_over_the_root():
    """E[Z] is unbiased at any number of particles; errors fall as 1 / sqrt(K)."""
    linear = problem(3, 2, std=0.5, seed=2)
    runs, errors = 128, []
    levels = jd.levels.append_clean(grid(VP, 20, 30.0, 0.05))
    exact, model = of_model(linear, levels)
    for k in (8, 32, 128):
        mean, log_z = particles(linear, levels, k, runs)
        ratio = np.exp(log_z - model)
        print(k, ratio.mean(), ratio.std(), np.sqrt(np.mean(np.square(mean - exact))))
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(runs)
        errors.append((ratio.std(), np.sqrt(np.mean(np.square(mean - exact)))))
    slopes = np.polyfit(np.log([8, 32, 128]), np.log(errors), 1)[0]
    print(slopes)
    assert np.all(np.abs(slopes + 0.5) < 0.15)


@pytest.mark.slow
def test_particles_of_an_example_do_not_see_the_others():
    keys = jax.random.split(jax.random.key(1), 2)
    y, known = jnp.array([[0.5, 0.0], [0.3, 0.0]]), jnp.array([1.0, 0.0])
    traces = []

    @jax.jit
    def run(y, std, keys):
        traces.append(0)
        solver = inverse.twisted(operators.mask(known), y, std)
        x = jd.noise.prior(GRID, jd.noise.fold_in(keys, 0), (2, 5, 2))
        return jd.sample_state(rational, solver, GRID, x, jd.noise.fold_in(keys, 1))

    x, state = run(y, jnp.array([0.3, 0.3]), keys)
    assert x.shape == (2, 5, 2) and np.all(np.isfinite(x)) and np.all(np.asarray(state.log_weights) == 0)
    other, others = run(y.at[1, 0].set(2.0), jnp.array([0.3, 0.5]), keys)
    np.testing.assert_array_equal(x[0], other[0])
    assert state.log_z[0] == others.log_z[0] and state.log_z[1] != others.log_z[1]
    swapped, _ = run(y[::-1], jnp.array([0.3, 0.3]), keys[::-1])
    np.testing.assert_array_equal(swapped[1], x[0])
    assert len(traces) == 1
    with pytest.raises(ValueError, match="std must be positive"):
        inverse.twisted(operators.mask(known), y, 0.0)


def test_a_network_gets_one_particle_of_each_example_also_where_pure_noise_is_checked():
    def network(params, x, noise, cond):
        assert x.shape == (2, 3)
        return x

    denoise = jd.denoiser(network, {}, jd.parameterize.velocity)
    solver = inverse.twisted(operators.mask(jnp.ones(3)), jnp.ones((2, 3)), 0.1)
    out = jax.eval_shape(lambda x: jd.sample(denoise, solver, GRID, x, KEY), jnp.ones((2, 4, 3)))
    assert out.shape == (2, 4, 3)


# RED-diff


@pytest.mark.slow
def test_the_gradient_of_red_diff_is_its_closed_form():
    """E[eps_hat - eps] = alpha sigma (alpha^2 C + sigma^2)^-1 (mu - m), which at one t is found by many draws."""
    linear, n = problem(3, 2), 50_000
    operator = operators.matrix(jnp.asarray(linear.a, jnp.float32))
    y = jnp.broadcast_to(jnp.asarray(linear.y, jnp.float32)[None], (n, 2))
    denoise, mu = gaussian(linear.mean, linear.cov).denoise, linear.mean + np.array([0.5, -0.3, 0.4])
    t = 0.4
    times = lambda key, batch: (jnp.full(batch, t), jnp.full(batch, 2.0))  # noqa: E731

    @jax.jit
    def slope(mu):
        loss = inverse.red_diff(denoise, VP, operator, y, std=linear.std, times=times, scale=0.3)
        (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(mu, KEY, {})
        return value - metrics["misfit"] - jnp.float32(0.3) * metrics["prior"], n * jnp.mean(slope, axis=0)

    rest, slope = slope(jnp.broadcast_to(jnp.asarray(mu, jnp.float32)[None], (n, 3)))
    level = VP(t)
    alpha, sigma = float(level.alpha), float(level.sigma)
    prior = alpha * sigma * np.linalg.solve(alpha**2 * linear.cov + sigma**2 * np.eye(3), mu - linear.mean)
    exact = linear.a.T @ (linear.a @ mu - linear.y) / linear.std**2 + 0.3 * 2 * sigma / alpha * prior
    np.testing.assert_allclose(slope, exact, atol=4 * 0.6 * sigma / alpha / np.sqrt(n))
    assert abs(rest) < 1e-3


@pytest.mark.slow
def test_with_a_key_for_each_example_red_diff_draws_for_each_alone():
    operator, y = operators.mask(jnp.array([1.0, 0.0])), jnp.array([[1.0, 0.0], [2.0, 0.0]])
    mu, keys = jnp.array([[0.5, -1.0], [0.3, 2.0]]), jax.random.split(jax.random.key(0), 2)

    def slope(mu, keys, y):
        loss = inverse.red_diff(rational, VP, operator, y, std=0.1, times=jd.times.uniform())
        return len(mu) * jax.grad(lambda mu: loss(mu, keys, {})[0])(mu)

    both = jax.jit(slope)(mu, keys, y)
    for i, alone in enumerate(both):
        np.testing.assert_allclose(slope(mu[i : i + 1], keys[i : i + 1], y[i : i + 1])[0], alone, rtol=1e-5)
    assert both[0, 1] != both[1, 1]
