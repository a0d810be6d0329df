"""Posterior denoisers of Gaussian data: against matrices in numpy, and the exact law of what samplers draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import gaussian, rational
from helpers.law import apart, grid, law, problem

import jaxdiff as jd
from jaxdiff import Level, inverse, solvers
from jaxdiff.inverse import operators

# (denoise, operator, y, std) -> denoiser; the names of helpers.law.
METHODS = {
    "tmpd": inverse.tmpd,
    "pigdm": inverse.pigdm,
    "dps": inverse.dps,
    "diffpir": inverse.diffpir,
    "diffpir, prior": lambda *args: inverse.diffpir(*args, prior_std=1.0),
    "ddnm": lambda denoise, operator, y, std: inverse.ddnm(denoise, operator, y),
}
LINEAR, UNIT = problem(), problem(isotropic=True, seed=1)
EXACT = {"tmpd": LINEAR, "pigdm": UNIT, "diffpir, prior": UNIT, "ddnm": UNIT}
PROCESSES = {"ve": jd.processes.EDM(), "vp": jd.processes.VP(), "flow": jd.processes.Flow()}
FIRST, LAST = 20.0, 0.01


def denoiser(linear, method, operator):
    """The method's denoiser for x of any batch."""
    prior = gaussian(linear.mean, linear.cov).denoise

    def denoise(x, level):
        y = jnp.broadcast_to(jnp.asarray(linear.y)[None], (len(x), len(linear.y)))
        return METHODS[method](prior, operator, y, linear.std)(x, level)

    return denoise


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_one_evaluation_is_that_of_matrices():
    """Every method, on VP and with sigma / alpha from 0.05 to 30, with a level for each example and for all."""
    operator = operators.linear(lambda x: x @ jnp.asarray(LINEAR.a).T, (6,), iterations=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    levels = jd.processes.VP()(jd.processes.VP().time(-jnp.log(jnp.array([30.0, 1.0, 0.05]))))

    @jax.jit
    def run(x):
        each = {name: denoiser(LINEAR, name, operator)(x, levels) for name in METHODS}
        return each, denoiser(LINEAR, "diffpir", operator)(x[1:2], levels.at(1))

    answers, alone = run(x)
    np.testing.assert_allclose(alone[0], answers["diffpir"][1], rtol=1e-10)
    for name, answer in answers.items():
        for i in range(3):
            alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
            matrix, offset = LINEAR.denoised(name, sigma / alpha)
            np.testing.assert_allclose(answer[i], matrix @ x[i] / alpha + offset, rtol=1e-7, err_msg=name)


def sampler(linear, method, make_solver):
    """Levels -> mean and covariance of x / alpha at their end, from the exact law of x_t given y at their beginning."""
    denoise = denoiser(linear, method, operators.matrix(jnp.asarray(linear.a)))
    run = jax.jit(lambda levels, mean, cov: law(denoise, make_solver, levels, mean, cov))

    def ends(levels):
        mean, cov = run(levels, *linear.noised(levels.at(0)))
        alpha = float(levels.alpha[-1])
        return np.asarray(mean) / alpha, np.asarray(cov) / alpha**2

    return ends


# Of second order, so that 2,000 steps leave nothing of the step: where drawn with noise and where without.
LAWS = {
    "flow": (lambda noise: solvers.heun(), False),
    "sde": (lambda noise: solvers.dpmpp_2s_ancestral(noise_sampler=noise), True),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_of_every_method_on_every_process(method, kind):
    """The exact methods reach the posterior; the others are off by what continuous time has them be, and no more."""
    make_solver, stochastic = LAWS[kind]
    linear = EXACT.get(method, LINEAR)
    linear = linear._replace(std=0.0) if method == "ddnm" else linear
    posterior = linear.noised(Level(0.0, 1.0, LAST))
    biased = LINEAR._replace(std=linear.std)
    limit = biased.limit(method, FIRST, LAST, stochastic=stochastic)
    if method != "tmpd":
        assert min(apart(limit, biased.noised(Level(0.0, 1.0, LAST)))) > 0.015  # a bias worth the name
    of = {"posterior": (linear, posterior)} if method == "tmpd" or (method in EXACT and not stochastic) else {}
    of |= {} if method == "tmpd" else {"limit": (biased, limit)}
    for goal, (case, exact) in of.items():
        ends = sampler(case, method, make_solver)
        for name, process in PROCESSES.items():
            assert max(apart(ends(grid(process, 2000, FIRST, LAST)), exact)) < 1e-3, (goal, name)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_variance_of_dps_is_that_of_its_closed_form():
    """x ~ N(0, c), y = x + std n: c exp(-c / v) by the flow and v (1 - exp(-2 c / v)) / 2 with noise, v = std^2."""
    c, v = 0.8, 0.5
    single = problem(1, 1)._replace(mean=np.zeros(1), cov=np.eye(1) * c, a=np.eye(1), std=v**0.5, y=np.array([0.3]))
    for (make_solver, _), exact in zip(
        LAWS.values(), (c * np.exp(-c / v), v / 2 * (1 - np.exp(-2 * c / v))), strict=True
    ):
        levels = grid(PROCESSES["ve"], 400, 1000.0, 1e-3)
        np.testing.assert_allclose(sampler(single, "dps", make_solver)(levels)[1].item(), exact, rtol=2e-3)


# What holds for any network.

GRID = Level(*(jnp.array(field, jnp.float32) for field in ((1, 0.6, 0.3, 0), (0, 0.4, 0.7, 1), (1, 0.6, 0.3, 0))))

# Operators whose singular values fall from 1 to 2e-7, and to 1e-4.
_bell = np.exp(-np.square(np.arange(-4, 5)) / 4.5)
BELL = jnp.asarray(np.outer(_bell, _bell) / _bell.sum() ** 2, jnp.float32)
_left, _right = (np.linalg.qr(np.random.default_rng(0).normal(size=(n, 20)))[0] for n in (20, 256))
ILL = (_left * np.geomspace(1, 1e-4, 20) @ _right.T).astype(np.float32)


def network(x, level):
    guided = jd.guidance.cfg(rational, lambda x, level: 0.3 * rational(x, level), 1.5)
    return guided(x, level), 0.1 * x


def of_network(method, y, known, std, scale):
    operator = operators.mask(known)
    if method == "ddnm":
        return inverse.ddnm(network, operator, y, scale=scale)
    options = {"prior_std": 0.9} if method in ("pigdm", "diffpir") else {}
    return getattr(inverse, method)(network, operator, y, std, scale=scale, **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tmpd", "pigdm", "dps", "diffpir", "ddnm"])
def test_what_every_method_holds(method):
    """Three steps from pure noise, with a guided network of no data that has a learned variance."""
    traces = []

    def draw(denoise, keys):
        x = jd.noise.prior(GRID, jd.noise.fold_in(keys, 0), (2, 6))
        return jd.sample(denoise, solvers.ddpm("learned"), GRID, x, jd.noise.fold_in(keys, 1))

    @jax.jit
    def run(y, known, std, scale, keys):
        traces.append(method)
        return draw(of_network(method, y, known, std, scale), keys)

    rng = np.random.default_rng(0)
    known = jnp.asarray(rng.integers(0, 2, size=(2, 6)), jnp.float32)
    y = known * jnp.asarray(rng.normal(size=known.shape), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    stds, ones = jnp.array([0.3, 0.5]), jnp.ones(2)
    drawn = run(y, known, stds, ones, keys)
    assert np.all(np.isfinite(drawn)) and drawn.dtype == jnp.float32
    # An example depends on its own key, measurement, mask, noise and scale: the other one's change nothing.
    swapped = run(*(a.at[1].add(b) for a, b in ((y, known[1]), (known, 0), (stds, 1), (ones, 1))), keys)
    np.testing.assert_array_equal(swapped[0], drawn[0])
    assert not np.allclose(swapped[1], drawn[1], atol=1e-4)
    turned = run(y[::-1], known[::-1], stds[::-1], ones, keys[::-1])
    np.testing.assert_array_equal(turned[1], drawn[0])
    # Without a scale, or without a measurement, it is the network: bit for bit, operation by operation; compiled, what
    # differentiates the network may round it otherwise.
    off = [(y, known, stds, 0 * ones), (0 * y, 0 * known, stds, ones)]
    x, level = drawn, GRID.at(1)
    for arguments in off:
        np.testing.assert_array_equal(of_network(method, *arguments)(x, level)[0], network(x, level)[0])
        np.testing.assert_allclose(run(*arguments, keys), jax.jit(draw, static_argnums=0)(network, keys), rtol=1e-5)
    assert not np.allclose(of_network(method, y, known, stds, ones)(x, level)[0], network(x, level)[0], atol=0.02)
    assert len(traces) == 1
    if method == "ddnm":
        assert np.linalg.norm(known * drawn - y) <= 1e-5 * np.linalg.norm(y)


def test_a_jacobian_that_is_no_covariance_does_not_throw_a_sample_away():
    """Of the network the variances are 1, 0.5 and, just short of making the system singular, -std^2."""
    std, level = 0.3, jd.processes.Flow()(jnp.full(2, 0.5))
    jacobian = jnp.array([1.0, 0.5, -(std**2) + 1e-6]) * level.alpha[0] / level.sigma[0] ** 2
    denoise = lambda x, level: x * jacobian[None]  # noqa: E731
    y = jnp.array([[3.0, -2.0, 1.0], [0.0, 0.0, 1.0]])
    x0 = inverse.tmpd(denoise, operators.mask(jnp.ones(3)), y, jnp.array([std, std]))(jnp.zeros((2, 3)), level)
    assert np.linalg.norm((y - x0)[0, :2]) < 0.5 * np.linalg.norm(y[0, :2])
    assert np.abs(x0[:, 2]).max() < 2


@pytest.mark.parametrize(
    "operator",
    [
        operators.average(2),
        operators.blur(BELL),
        pytest.param(operators.matrix(jnp.asarray(ILL), (16, 16, 1)), marks=pytest.mark.slow),
    ],
    ids=["average", "blur", "matrix"],
)
def test_the_null_space_of_any_network_fits_a_measurement_without_noise(operator):
    """Also where A hardly sees: squares of the blur's and the matrix' smallest singular values are below rounding."""
    y = operator.apply(jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 1)), jnp.float32))
    ddnm = inverse.ddnm(rational, operator, y), solvers.ddim()
    replaced = rational, inverse.replace(solvers.ddim(1.0), operator, y)
    run = lambda x: [jd.sample(denoise, solver, GRID, x, jax.random.key(0)) for denoise, solver in (ddnm, replaced)]  # noqa: E731
    for x in jax.jit(run)(jnp.ones((2, 16, 16, 1))):
        assert np.linalg.norm(operator.apply(x) - y) <= 1e-5 * np.linalg.norm(y)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_normalized_step_moves_by_the_gradient_of_the_norm():
    x, (cur, nxt) = jnp.array([[0.3, -0.2], [1.0, 0.5]]), (jax.tree.map(jnp.float64, GRID.at(i)) for i in (1, 2))
    a, y = jnp.array([[1.0, 2.0]]), jnp.array([[0.7], [-0.4]])
    solver = inverse.dps_normalized(solvers.ddim(), operators.matrix(a), y, jnp.array([0.5, 2.0]))
    run = jax.jit(lambda x: [s.step(rational, jax.random.key(0), x, (), cur, nxt)[0] for s in (solver, solvers.ddim())])
    moved, plain = run(x)
    norms = jax.jit(lambda x: jnp.linalg.norm(y - rational(x, cur) @ a.T, axis=1))
    for j, e in enumerate(1e-6 * np.eye(2)[:, None]):  # central differences
        slope = (norms(x + e) - norms(x - e)) / 2e-6
        np.testing.assert_allclose((plain - moved)[:, j], np.array([0.5, 2.0]) * slope, rtol=1e-6)


def test_bad_input():
    operator, y = operators.mask(jnp.array([1.0, 0.0])), jnp.array([[1.0, 0.0]])
    x, level = jnp.ones((1, 2)), GRID.at(1)
    for make, words in {
        lambda: inverse.tmpd(rational, operator, y, -0.1): "std must be a finite number in",
        lambda: inverse.dps(rational, operator, y, 0.0): "std must be positive",
        lambda: inverse.pigdm(rational, operator, y + 1, 0.1): "0 where nothing is measured",
        lambda: inverse.pigdm(rational, operator, jnp.ones((1, 3)), 0.1): "another shape than the mask",
        lambda: inverse.diffpir(rational, operator, y, 0.1, lam=-1.0): "lam must be",
        lambda: inverse.ddnm(rational, operators.average, y): "operator must be an Operator",
        lambda: inverse.ddnm(rational, operator, jnp.ones((1, 2), int)): "y must be an array of floating-point",
        lambda: inverse.tmpd(rational, operator, jnp.zeros((2, 2)), 0.1)(x, level): r"shape \[1, 2\] from x",
        lambda: inverse.tmpd(rational, operator, y, 0.1, iterations=0): "at least 1",
        lambda: inverse.guide(rational, None): "loss must be a function",
        lambda: inverse.tmpd(None, operator, y, 0.1): "must be a denoiser",
        lambda: inverse.dps_normalized(rational, operator, y): "must be a Solver",
        lambda: inverse.dps_normalized(solvers.flow_map(), operator, y): "told both ends of a step",
        # A std of any kind, and what y may be without noise.
        lambda: inverse.dps(rational, operator, y, np.float32(0)): "std must be positive",
        lambda: inverse.dps(rational, operator, y, jnp.zeros(1)): "std must be positive",
        lambda: inverse.dps(rational, operator, y, jnp.ones(3))(x, level): "std is a number or one for each of 1",
        lambda: inverse.pigdm(rational, operator, y, jnp.ones(3))(x, level): "std is a number or one for each of 1",
        lambda: inverse.twisted(operator, y, np.zeros(1)): "std must be positive",
        lambda: inverse.tmpd(rational, operator, y, jnp.float32(-0.1)): "std must be a finite number in",
        lambda: inverse.tmpd(rational, operator, y, jnp.array([jnp.inf])): "std must be a finite number in",
        lambda: inverse.tmpd(rational, operator, y.at[0, 0].set(jnp.nan), 0.1): "y must be finite",
    }.items():
        with pytest.raises(ValueError, match=words):
            make()
    jax.eval_shape(lambda std: inverse.dps(rational, operator, y, std)(x, level), 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_guidance_moves_by_the_gradient_of_any_loss_and_the_normalized_step_without_a_scale_is_its_solvers():
    """Of the loss at x0_hat, by x_t: central differences; at a residual of 0, whose norm has no gradient, too."""
    x, (level, nxt) = jnp.array([[0.3, -0.2], [1.0, 0.5]]), (jax.tree.map(jnp.float64, GRID.at(i)) for i in (1, 2))
    scale = jnp.array([0.5, 2.0])

    def loss(x0):  # intensities, and a coupling
        return jnp.sum(jnp.square(jnp.square(x0) - 0.4), axis=1) + jnp.sin(3 * x0[:, 0] * x0[:, 1])

    @jax.jit
    def run(x):
        denoise = inverse.guide(rational, loss, scale)
        solver = inverse.dps_normalized(
            solvers.ddim(), operators.mask(jnp.ones(2)), rational(x, level).at[0].add(0.1), jnp.zeros(2)
        )
        steps = [s.step(rational, jax.random.key(0), x, (), level, nxt)[0] for s in (solver, solvers.ddim())]
        e = 1e-5 * jnp.eye(2)[:, None]
        slope = [loss(rational(x + d, level)) - loss(rational(x - d, level)) for d in e]
        return rational(x, level) - denoise(x, level), jnp.stack(slope, axis=1) / 2e-5, steps

    moved, slope, (stepped, plain) = run(x)
    factor = float(level.sigma) ** 2 / float(level.alpha)
    np.testing.assert_allclose(moved, np.asarray(scale)[:, None] * factor * slope, rtol=1e-7)
    np.testing.assert_allclose(stepped, plain, rtol=1e-12)
