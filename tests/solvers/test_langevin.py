"""Langevin dynamics at the grid's levels against Song and Ermon 2019 and Song et al. 2020, and its stationary law."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
EDM, VP = jd.processes.EDM(), jd.processes.VP()
SIGMA = np.append(np.geomspace(20.0, 0.05, 6), 0.0)


@partial(jax.jit, static_argnums=0)
def run(solver, levels, x):
    return jd.sample(rational, solver, levels, x, KEY)


@partial(jax.jit, static_argnums=0)
def run_with(make, value, levels, x):
    return jd.sample(rational, make(value), levels, x, KEY)


def start(scale=20.0):
    return jnp.asarray(scale * np.random.default_rng(0).normal(size=(5, 2)))


def score_at(x, alpha, sigma):
    return (alpha * rational(x, Level(0.0, np.float64(alpha), np.float64(sigma))) - x) / sigma**2


def drawn(key, x):
    return np.asarray(normal_like(key, x))


@pytest.mark.slow
def test_annealed_langevin_is_algorithm_1_and_its_size_compiles_nothing():
    run_with.clear_cache()
    make = partial(jd.solvers.annealed_langevin, 3)
    for size in (0.2, 0.05):
        x = np.asarray(start())
        for i, sigma in enumerate(SIGMA[1:-1]):
            alpha_i = size * SIGMA[-2] ** 2 * sigma**2 / SIGMA[-2] ** 2  # epsilon sigma_i^2 / sigma_L^2
            for t in range(3):
                z = drawn(fold_in(fold_in(KEY, i), t), x)
                x = x + alpha_i / 2 * score_at(x, 1.0, sigma) + np.sqrt(alpha_i) * z
        x = rational(x, Level(0.0, 1.0, SIGMA[-2]))
        np.testing.assert_allclose(run_with(make, size, EDM(SIGMA), start()), x, rtol=1e-9, atol=1e-10)
    assert run_with._cache_size() == 1


@pytest.mark.slow
def test_annealed_langevin_on_vp_is_that_of_x_over_alpha():
    levels = VP(np.linspace(0.8, 0.1, 5))
    scaled = EDM(levels.sigma / levels.alpha)
    solver = jd.solvers.annealed_langevin(2)
    out = run(solver, levels, start(1.0)) / levels.alpha[-1]
    np.testing.assert_allclose(out, run(solver, scaled, start(1.0) / levels.alpha[0]), rtol=1e-9)


@pytest.mark.parametrize("process", [pytest.param(EDM, marks=pytest.mark.slow, id="ve"), pytest.param(VP, id="vp")])
def test_predictor_corrector_is_the_papers_with_norms_of_each_example(process):
    levels = EDM(SIGMA) if process is EDM else VP(np.array([0.9, 0.6, 0.4, 0.2, 0.0]))
    scale = 20.0 if process is EDM else 1.0
    predictor, r = jd.solvers.reverse_diffusion(), 0.3
    out = run_with(lambda r: jd.solvers.predictor_corrector(predictor, 2, r), r, levels, start(scale))
    x, n = start(scale), levels.sigma.size - 1
    for i, (cur, nxt) in enumerate(pairwise(range(n + 1))):
        a, b = (jax.tree.map(lambda field, k=k: field[k], levels) for k in (cur, nxt))
        x, _ = predictor.step(rational, fold_in(fold_in(KEY, i), 0), x, (), a, b)
        if nxt == n:
            break
        alpha, sigma = float(b.alpha), float(b.sigma)
        for j in range(2):
            g, z = score_at(np.asarray(x), alpha, sigma), drawn(fold_in(fold_in(fold_in(KEY, i), 1), j), x)
            norm = lambda v: np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
            e = 2 * (float(a.alpha) / alpha) ** 2 * (r * norm(z) / norm(g)) ** 2
            x = x + e * g + np.sqrt(2 * e) * z
    np.testing.assert_allclose(out, x, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_many_small_steps_tend_to_the_law_at_the_level():
    """From a wrong start: of 300 steps at one level the unadjusted dynamics' own covariance, known for Gaussian data.

    x + e/2 score + sqrt(e) z has the stationary covariance C (1 - e C^-1 / 4)^-1 along each eigenvector.
    """
    n, size = 20_000, 0.3
    at = Level(*(jnp.asarray([first, second]) for first, second in ((0.4, 0.3), (1.0, 1.0), (1.001, 1.0))))
    solver = jd.solvers.annealed_langevin(300, size)
    x = jnp.zeros((n, 2))
    out = np.asarray(jax.jit(lambda x: jd.sample(BLOB.denoise, solver, at, x, KEY))(x))
    mean, cov = BLOB.moments(Level(0.3, 1.0, 1.0))
    values, vectors = np.linalg.eigh(cov)
    expected = vectors @ np.diag(values / (1 - size / (4 * values))) @ vectors.T
    np.testing.assert_allclose(out.mean(0), mean, atol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(np.cov(out.T), expected, atol=5 * 1.7 * np.sqrt(2 / n))


def test_a_predictor_with_a_learned_variance():
    """Its mean is what the corrector needs."""
    both = lambda x, level: (rational(x, level), jnp.zeros_like(x))  # noqa: E731
    levels, x = EDM(jnp.asarray(SIGMA)), jnp.full((2, 3), 20.0)
    solvers = [jd.solvers.predictor_corrector(jd.solvers.ddpm(variance)) for variance in ("learned", "small")]
    assert [solver.learned_variance for solver in solvers] == [True, False]
    learned = jd.sample(both, solvers[0], levels, x, KEY)
    np.testing.assert_allclose(learned, jd.sample(rational, solvers[1], levels, x, KEY), rtol=1e-9)


def test_evaluations_are_counted():
    assert jd.solvers.predictor_corrector(jd.solvers.heun(), 3).nfe == 5
    assert jd.solvers.annealed_langevin(7).nfe == 7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: jd.solvers.annealed_langevin(0), "steps is an integer of at least 1, got 0"),
        (lambda: jd.solvers.annealed_langevin(2, -1.0), "step_size must be positive, got -1.0"),
        (lambda: jd.solvers.predictor_corrector(steps=1.5), "steps is an integer of at least 1, got 1.5"),
        (lambda: jd.solvers.predictor_corrector(snr=0.0), "snr must be positive, got 0.0"),
        (lambda: jd.solvers.predictor_corrector(jd.solvers.flow_map()), "told both ends of a step"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError, match=words):
        make()
