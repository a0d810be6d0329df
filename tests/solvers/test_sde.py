"""The reverse SDE's solvers against Song et al. 2020's formulas, with a table's betas and with VE's sigmas."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
BETAS = np.linspace(1e-3, 0.25, 12)
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
TABLE = jd.processes.Discrete.from_betas(BETAS)
SIGMA = np.append(np.geomspace(20.0, 0.05, 8), 0.0)


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


def start(scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(0).normal(size=(5, 2)))


def drawn(i, x):
    return np.asarray(normal_like(fold_in(KEY, i), x))


def score_at(x, alpha, sigma):
    return (alpha * rational(x, Level(0.0, np.float64(alpha), np.float64(sigma))) - x) / sigma**2


def test_reverse_diffusion_of_a_beta_table_is_the_papers():
    x = np.asarray(start())
    out = run(jd.solvers.reverse_diffusion(), TABLE(np.arange(12, -1, -1)), start())
    for i, t in enumerate(range(12, 1, -1)):  # x_{t-1} = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z
        beta = BETAS[t - 1]
        x = (2 - np.sqrt(1 - beta)) * x + beta * score_at(x, np.sqrt(ABAR[t]), np.sqrt(1 - ABAR[t]))
        x = x + np.sqrt(beta) * drawn(i, x)
    at = Level(1, np.sqrt(ABAR[1]), np.sqrt(1 - ABAR[1]))
    np.testing.assert_allclose(out, rational(x, at), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [jd.solvers.reverse_diffusion, jd.solvers.euler_maruyama])
def test_with_ve_both_lose_variance_by_sigma_squared(solver):
    x = np.asarray(start(20.0))
    out = run(solver(), jd.processes.EDM()(SIGMA), start(20.0))
    for i, (cur, nxt) in enumerate(pairwise(SIGMA[:-1])):  # f = 0, and g^2 dt = sigma_t^2 - sigma_s^2
        G2 = cur**2 - nxt**2
        x = x + G2 * score_at(x, 1.0, cur) + np.sqrt(G2) * drawn(i, x)
    np.testing.assert_allclose(out, rational(x, Level(0.0, 1.0, SIGMA[-2])), rtol=1e-9, atol=1e-10)


def test_euler_maruyama_is_the_papers_with_short_steps_of_time():
    """x + (g^2 score - f x) dt + g sqrt(dt) z with f and g at t: the difference of one step is of order dt^2."""
    vp, x, z = jd.processes.VP(), np.asarray(start()), drawn(0, start())
    differences = []
    for dt in (1e-2, 1e-3):
        f, g = (float(a) for a in vp.sde(jnp.float64(0.6)))
        levels = vp(np.array([0.6, 0.6 - dt]))
        out = run(jd.solvers.euler_maruyama(), levels, start())
        score = score_at(x, float(levels.alpha[0]), float(levels.sigma[0]))
        differences.append(np.abs(out - (x - f * x * dt + g**2 * score * dt + g * np.sqrt(dt) * z)).max())
    # The drift is off by dt^2, g sqrt(dt) by dt^1.5.
    assert differences[0] < 0.1 and 20 < differences[0] / differences[1] < 120


@pytest.mark.slow
def test_pure_noise_takes_the_posteriors_step():
    levels, x = jd.grids.by_time(jd.processes.Flow(), 2), start()
    first = jax.tree.map(lambda field: field[:2], levels)
    for solver in (jd.solvers.reverse_diffusion(), jd.solvers.euler_maruyama()):
        np.testing.assert_allclose(run(solver, first, x), run(jd.solvers.ddpm(), first, x), rtol=1e-12)
