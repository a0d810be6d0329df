"""Where solvers that draw noise end, within Monte-Carlo error: the moments of Gaussian data, and a mixture's law."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, gaussian
from helpers.optimized import OPTIMIZED
from helpers.solvers import SOLVERS

import jaxdiff as jd
from jaxdiff import Level, solvers

VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
FROM_80 = lambda n: EDM(np.append(np.geomspace(80, 0.002, n), 0))  # noqa: E731
ALL_OF_FLOW = FLOW(np.linspace(1.0, 0.0, 401) ** 1.5)


def all_of_vp(n):
    return VP(np.linspace(1.0, 0.0, n + 1) ** 1.5)


def consistency_function(data):
    """(x, level) -> where the probability flow ends: 40 steps of Heun's method in sigma / alpha."""

    def to_clean(x, level):
        sigma = level.sigma / level.alpha * jnp.linspace(1, 0, 41) ** 5
        return jd.sample(data.denoise, solvers.heun(), EDM(sigma), x / level.alpha, jax.random.key(0))

    return to_clean


class Case(NamedTuple):
    """A solver, its grid, how many examples of the data make one of the solver's, and data -> denoiser."""

    solver: solvers.Solver
    levels: Level
    group: int = 1
    denoiser: Callable = lambda data: data.denoise


SPECIAL = {
    # The dynamics have to keep up with the levels: many steps, and long ones, whose error the last levels forget.
    "annealed_langevin": Case(solvers.annealed_langevin(10, 1.0), EDM(np.append(np.geomspace(10, 0.03, 200), 0))),
    # Its step divides by the score's norm: off by some part in as many as there are numbers in an example.
    "predictor_corrector": Case(solvers.predictor_corrector(), all_of_vp(400), 500),
    # Its denoiser is no denoiser.
    "consistency": Case(solvers.consistency(), VP(np.array([1.0, 0.6, 0.3, 0.0])), 1, consistency_function),
}
CASES = {
    name: SPECIAL.get(name, Case(solver, all_of_vp(400 if solver.order == 1 else 100)))
    for name, solver in SOLVERS.items()
    if solver.stochastic
} | {
    "ddpm large": Case(solvers.ddpm("large"), all_of_vp(400)),
    "ddpm, flow": Case(solvers.ddpm(), ALL_OF_FLOW),
    "ddpm, ve": Case(solvers.ddpm(), FROM_80(500)),
    "ddim 0.5": Case(solvers.ddim(0.5), all_of_vp(400)),
    "euler churn": Case(solvers.euler(EDM, 0.02), FROM_80(600)),
    "heun churn": Case(solvers.heun(EDM, 0.05), FROM_80(200)),
    "heun churn, vp": Case(solvers.heun(VP, 0.05), VP(np.linspace(0.95, 0.0, 151))),
    "euler_ancestral, ve": Case(solvers.euler_ancestral(), FROM_80(500)),
    "dpm_2_ancestral, flow": Case(solvers.dpm_2_ancestral(process=FLOW), ALL_OF_FLOW),
    "reverse_diffusion, flow": Case(solvers.reverse_diffusion(), ALL_OF_FLOW),
}


# Millions of normal numbers: here it pays to optimize a program, and to draw from a quicker generator than threefry.
KEY = jax.random.key(7, impl="rbg")


def louder(key, x, cur, nxt):
    return 1.1 * jd.noise.white(key, x, cur, nxt)


def doubled(key, x, cur, nxt):
    return 2 * jd.noise.white(key, x, cur, nxt)


WRONG = {
    "louder": Case(solvers.ddpm(noise_sampler=louder), all_of_vp(400)),
    "doubled": Case(solvers.ddim(0.5, noise_sampler=doubled), all_of_vp(400)),
}
SIZES = 25_000, 20_000


@cache
def ends(name: str):
    """Samples of BLOB and of CLUSTERS, SIZES of them in one run, from their true laws at the grid's first level."""
    case, rng = (CASES | WRONG)[name], np.random.default_rng(1)
    levels = jax.tree.map(lambda field: np.asarray(field, np.float32), case.levels)
    x = [data.draw(rng, n, levels.at(0)) for data, n in zip((BLOB, CLUSTERS), SIZES, strict=True)]
    of_blob, of_clusters = map(case.denoiser, (BLOB, CLUSTERS))

    def denoise(x, level):
        blob, clusters = jnp.split(x.reshape(-1, 2), SIZES[:1])
        return jnp.concatenate([of_blob(blob, level), of_clusters(clusters, level)]).reshape(x.shape)

    run = jax.jit(lambda x: jd.sample(denoise, case.solver, levels, x, KEY), compiler_options=OPTIMIZED)
    out = run(np.concatenate(x).astype(np.float32).reshape(-1, case.group, 2))
    return np.split(np.asarray(out, np.float64).reshape(-1, 2), SIZES[:1])


def off(out):
    """How far mean and covariance are from BLOB's, in units of what is allowed."""
    mean, cov = BLOB.moments(Level(0.0, 1.0, 0.0))
    var, wrong = np.diag(cov), np.cov(out.T) - cov
    # Four standard errors; for the finite step and the float32 0.002 of the mean and 1 % of the covariance's trace.
    by_mean = np.abs(out.mean(0) - mean) / (4 * np.sqrt(var / len(out)) + 2e-3)
    by_cov = np.abs(wrong) / (4 * np.sqrt((np.outer(var, var) + cov**2) / len(out)) + 0.01 * np.trace(cov))
    print(f"of what is allowed: mean {by_mean.round(2)}, covariance {by_cov[np.triu_indices(2)].round(2)}")
    return max(by_mean.max(), by_cov.max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mean_and_covariance_of_a_gaussian(name):
    assert off(ends(name)[0]) < 1


@pytest.mark.slow
def test_a_tenth_more_noise_shows_in_the_covariance():
    assert off(ends("louder")[0]) > 3
    assert off(ends("doubled")[0]) > 3


# The mixture. Distances are those of the sorted projections on fixed directions (sliced Wasserstein, Rabin et al.
# 2011); what two draws of the data itself are apart says how small a distance 20,000 samples can show.

N, ANGLES = SIZES[1], np.linspace(0, np.pi, 32, endpoint=False)
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)])


def sliced(a, b):
    return np.sqrt(np.mean(np.square(np.sort(a @ DIRECTIONS, axis=0) - np.sort(b @ DIRECTIONS, axis=0))))


@pytest.fixture(scope="module")
def distance():
    """out -> its distance from real data, in units of the largest of 20 between two sets of real data."""
    rng = np.random.default_rng(0)
    real = CLUSTERS.draw(rng, N)
    apart = [sliced(CLUSTERS.draw(rng, N), CLUSTERS.draw(rng, N)) for _ in range(20)]

    def measure(out):
        print(f"{sliced(out, real):.4f}; data to data {min(apart):.4f} to {max(apart):.4f}")
        return sliced(out, real) / max(apart)

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_law_of_a_mixture(name, distance):
    # About one in 20 pairs of real sets exceeds the largest of 20, and one in some hundreds half as much again: room
    # for chance, and for the finite step.
    assert distance(ends(name)[1]) < 1.5


@pytest.mark.slow
def test_the_distance_sees_a_tenth_more_noise_other_weights_and_a_law_with_the_same_moments(distance):
    rng = np.random.default_rng(3)
    assert distance(ends("louder")[1]) > 3
    assert distance(ends("doubled")[1]) > 3
    assert distance(CLUSTERS._replace(weights=np.array([0.32, 0.5, 0.18])).draw(rng, N)) > 2
    assert distance(gaussian(*CLUSTERS.moments(Level(0.0, 1.0, 0.0))).draw(rng, N)) > 2
