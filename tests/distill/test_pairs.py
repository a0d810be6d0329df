"""Pairs of times against the formulas of the papers, written again in NumPy, on processes that name times otherwise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import distill
from jaxdiff.processes import EDM, VE, Cosine, Discrete, Flow, Learned

KEY = jax.random.key(0)
STEPS = 700


def published_levels(n):
    """Consistency models, sec. 3: t_1 = epsilon < ... < t_N = T."""
    eps, top, rho = 0.002, 80.0, 7.0
    i = np.arange(1, n + 1)
    return (eps ** (1 / rho) + (i - 1) / (n - 1) * (top ** (1 / rho) - eps ** (1 / rho))) ** rho


def ct_levels(k, s0=2, s1=150):
    return math.ceil(math.sqrt(k / STEPS * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def ict_levels(k, s0=10, s1=1280):
    length = math.floor(STEPS / (math.log2(math.floor(s1 / s0)) + 1))
    return min(s0 * 2 ** math.floor(k / length), s1) + 1


@jax.jit
def noise(process, t):
    """sigma / alpha."""
    return jnp.exp(-process(t).lam)


@pytest.mark.parametrize(
    ("make", "published", "process"),
    [(distill.ct_grid, ct_levels, EDM()), (distill.ict_grid, ict_levels, Flow())],
    ids=["ct", "ict"],
)
def test_grids_that_grow(make, published, process):
    """N(k) levels of the paper, of which the cleanest is clean data, then repeated; one program for all steps."""
    grid = jax.jit(make(process, STEPS))
    sizes = set()
    for k in (0, 86, 87, 200, 300, 400, 500, 699, 5000):
        levels, n = grid(k), published(min(k, STEPS))
        sizes.add(n)
        sigma = np.asarray(levels.sigma / levels.alpha)
        np.testing.assert_allclose(sigma[: n - 1], published_levels(n)[:0:-1], rtol=1e-4)
        np.testing.assert_array_equal(sigma[n - 1 :], 0)
    assert len(sizes) > 4 and grid._cache_size() == 1


def test_decay_of_the_target():
    decay = jax.jit(distill.ct_decay(STEPS, mu0=0.95, s0=2, s1=150))
    steps = [0, 10, 350, 699, 5000]
    published = [math.exp(2 * math.log(0.95) / ct_levels(min(k, STEPS))) for k in steps]
    np.testing.assert_allclose([decay(k) for k in steps], published, rtol=1e-6)


@pytest.mark.slow
def test_neighbours_are_equally_likely():
    table = Discrete.linear(1000)
    for process, levels in ((table, jd.grids.ddpm(table, 50)), (VE(), distill.ct_grid(VE(), STEPS, s1=40))):
        grid = jax.jit(levels)(300) if callable(levels) else levels
        n = int(np.sum(np.asarray(grid.sigma) > 0))
        t, s, weight = jax.jit(distill.grid_pairs(process, levels), static_argnums=1)(KEY, 40 * n, 300)
        i = np.array([int(np.argmin(np.abs(np.asarray(grid.t) - time))) for time in np.asarray(t)])
        last = i == n - 1
        np.testing.assert_allclose(grid.t[i + 1][~last], s[~last], rtol=1e-5)
        np.testing.assert_array_equal(process(s).sigma[last], 0)  # at VE's time 0 there would be noise
        np.testing.assert_array_equal(weight, 1)
        counts = np.bincount(i, minlength=n)
        assert len(counts) == n and np.sum((counts - 40) ** 2 / 40) < n + 5 * np.sqrt(2 * n)
    assert jnp.issubdtype(distill.grid_pairs(table, jd.grids.ddpm(table, 50))(KEY, 4, 0)[0].dtype, jnp.integer)


@pytest.mark.slow
def test_log_normal_bins():
    """iCT: p(sigma_i) is erf((log sigma_{i+1} - mean) / (sqrt(2) std)) - erf((log sigma_i - mean) / (sqrt(2) std))."""
    draws, k = 40_000, 0
    levels = jax.jit(distill.ict_grid(Cosine(), STEPS, s1=20, sigma_min=0.01, sigma_max=20.0))
    t, s, weight = jax.jit(distill.log_normal_pairs(Cosine(), levels), static_argnums=1)(KEY, draws, k)
    sigma = np.append(noise(Cosine(), levels(k).t)[: ict_levels(k) - 1], 0.0)
    edges = [math.erf((math.log(x) + 1.1) / (math.sqrt(2) * 2.0)) if x else -1.0 for x in sigma]
    expected = -np.diff(edges) / (edges[0] + 1)
    i = np.argmin(np.abs(np.asarray(noise(Cosine(), t))[:, None] - sigma[:-1]), axis=1)
    counts = np.bincount(i, minlength=len(expected))
    assert np.sum((counts - draws * expected) ** 2 / (draws * expected)) < 30  # of chi squared with 9 degrees
    np.testing.assert_allclose(noise(Cosine(), s), sigma[i + 1], rtol=1e-4)
    np.testing.assert_allclose(weight, 1 / (sigma[i] - sigma[i + 1]), rtol=1e-3)


@pytest.mark.slow
def test_a_grid_that_ends_in_noise_has_no_pair_below():
    levels = EDM()(jnp.asarray([9.0, 3.0, 1.0, 0.5]))
    for make in (distill.log_normal_pairs, distill.grid_pairs):
        t, s, _ = make(EDM(), levels)(KEY, 1000, 0)
        assert set(np.asarray(t).tolist()) == {9.0, 3.0, 1.0} and set(np.asarray(s).tolist()) == {3.0, 1.0, 0.5}


@pytest.mark.parametrize("process", [EDM(), *(pytest.param(p, marks=pytest.mark.slow) for p in (Flow(), VE()))])
def test_easy_consistency_tuning(process):
    """r / t = 1 - n(t) / q^(stage + 1), n(t) = 1 + 8 sigmoid(-t), cut off at 0; the weight is 1 / (t - r)."""
    draws = 20_000
    pairs = distill.ect_pairs(process, steps=100, stages=4)

    @jax.jit
    def levels(k):
        t, s, weight = pairs(KEY, draws, k)
        return process(t), process(s), weight

    for k, stage in ((0, 0), (24, 0), (25, 1), (99, 3), (1000, 3)):
        cur, nxt, weight = levels(k)
        sigma, r = (np.asarray(level.sigma, np.float64) / np.asarray(level.alpha) for level in (cur, nxt))
        expected = np.maximum(sigma * (1 - (1 + 8 / (1 + np.exp(sigma))) / 2 ** (stage + 1)), 0)
        np.testing.assert_allclose(r, expected, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(weight, 1 / (sigma - expected), rtol=1e-3)
        assert (r == 0).any() == (stage < 3)
    assert abs(np.log(sigma).mean() + 1.1) < 5 * 2 / draws**0.5 and abs(np.log(sigma).std() - 2) < 0.05
    assert levels._cache_size() == 1


def test_easy_consistency_tuning_reaches_every_stage():
    """With k = 0 s / t is 1 - 2^-(stage + 1); the stages are of equal length to one update."""
    for steps in (10, 100):
        pairs = distill.ect_pairs(EDM(), steps=steps, k=0.0)
        t, s, _ = jax.jit(jax.vmap(lambda step: pairs(KEY, 1, step)))(jnp.arange(steps))  # noqa: B023
        stages = np.round(-np.log2(1 - np.asarray(s / t, np.float64)) - 1).astype(int)[:, 0]
        lengths = np.bincount(stages, minlength=8)
        assert np.all(np.diff(stages) >= 0) and len(lengths) == 8 and 1 <= lengths.min() >= lengths.max() - 1


@pytest.mark.slow
def test_easy_consistency_tuning_in_one_stage():
    t, s, _ = distill.ect_pairs(EDM(), steps=1, stages=1, q=256.0)(KEY, 100, 7)
    np.testing.assert_allclose(s / t, 1 - (1 + 8 * jax.nn.sigmoid(-t)) / 256, rtol=1e-5)


def test_mistakes():
    for make in (distill.ct_grid, distill.ict_grid):
        with pytest.raises(ValueError, match="2 <= s0 <= s1"):
            make(EDM(), 100, s0=1)
        with pytest.raises(ValueError, match="sigma_min"):
            make(EDM(), 100, sigma_min=90.0)
        with pytest.raises(ValueError, match="the class Flow: call"):
            make(Flow, 100)
    with pytest.raises(ValueError, match="more stages than steps = 5"):
        distill.ict_grid(EDM(), 5)
    with pytest.raises(ValueError, match="mu0"):
        distill.ct_decay(100, mu0=1.0)
    with pytest.raises(ValueError, match="levels must be a grid"):
        distill.grid_pairs(EDM(), jnp.ones(3))
    with pytest.raises(ValueError, match="std must be positive"):
        distill.log_normal_pairs(EDM(), distill.ict_grid(EDM(), 100), std=0.0)
    process = Learned(jnp.zeros(3))
    levels = jd.Level(*np.float32([[1, 0.5, 0], [0.1, 0.8, 1], [0.9, 0.6, 0]]))
    for make in (distill.grid_pairs, distill.log_normal_pairs):
        make(process, levels.at(slice(None, -1)))
        for grid in (levels, lambda step: levels):
            with pytest.raises(ValueError, match=r"clean data has no time in Learned, .* sigma = 0\.006738"):
                make(process, grid)
    with pytest.raises(ValueError, match="clean data has no time in Learned"):
        distill.ect_pairs(process, steps=100)
    with pytest.raises(ValueError, match=r"stages must be an integer of at least 1, got 2\.5"):
        distill.ect_pairs(EDM(), steps=10, stages=2.5)
    with pytest.raises(ValueError, match="stages = 8, steps = 4"):
        distill.ect_pairs(EDM(), steps=4)
    with pytest.raises(ValueError, match="q, the ratio"):
        distill.ect_pairs(EDM(), steps=100, q=1.0)
