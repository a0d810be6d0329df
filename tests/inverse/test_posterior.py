"""Posterior denoisers of Gaussian data: against matrices in numpy, and the exact law of what samplers draw with them."""

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


def denoiser(problem, method, operator):
    """The method's denoiser for x of any batch."""
    prior = gaussian(problem.mean, problem.cov).denoise

    def denoise(x, level):
        y = jnp.broadcast_to(jnp.asarray(problem.y)[None], (len(x), len(problem.y)))
        return METHODS[method](prior, operator, y, problem.std)(x, level)

    return denoise


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


def ends(problem, method, make_solver, levels):
    """Mean and covariance of x / alpha at the end, from the exact law of x_t given y at the beginning."""
    operator = operators.matrix(jnp.asarray(problem.a))
    mean, cov = problem.noised(levels.at(0))
    denoise = denoiser(problem, method, operator)
    mean, cov = jax.jit(lambda levels, mean, cov: law(denoise, make_solver, levels, mean, cov))(levels, mean, cov)
    alpha = float(levels.alpha[-1])
    return np.asarray(mean) / alpha, np.asarray(cov) / alpha**2


@pytest.mark.usefixtures("x64")
def test_what_a_sampler_draws_is_the_posterior():
    levels = grid(PROCESSES["vp"], 100, FIRST, LAST)
    drawn = ends(LINEAR, "tmpd", lambda noise: solvers.heun(), levels)
    assert max(apart(drawn, LINEAR.noised(Level(0.0, 1.0, LAST)))) < 2e-3


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
    for name, process in PROCESSES.items():
        levels = grid(process, 2000, FIRST, LAST)
        if method in EXACT:
            assert max(apart(ends(linear, method, make_solver, levels), posterior)) < 1e-3, name
        if method != "tmpd":
            assert max(apart(ends(biased, method, make_solver, levels), limit)) < 1e-3, name


@pytest.mark.usefixtures("x64")
def test_the_variance_of_dps_is_that_of_its_closed_form():
    """x ~ N(0, c), y = x + std n: c exp(-c / v) by the flow and v (1 - exp(-2 c / v)) / 2 with noise, v = std^2."""
    c, v = 0.8, 0.5
    one = problem(1, 1)._replace(mean=np.zeros(1), cov=np.eye(1) * c, a=np.eye(1), std=v**0.5, y=np.array([0.3]))
    for (make_solver, _), exact in zip(LAWS.values(), (c * np.exp(-c / v), v / 2 * (1 - np.exp(-2 * c / v))), strict=True):
        levels = grid(PROCESSES["ve"], 400, 1000.0, 1e-3)
        np.testing.assert_allclose(ends(one, "dps", make_solver, levels)[1].item(), exact, rtol=2e-3)
