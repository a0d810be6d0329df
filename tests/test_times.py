"""times: distributions by their moments and Kolmogorov-Smirnov, seeds fixed; weights by unbiasedness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import times
from jaxdiff.processes import EDM, VP, Cosine, Discrete, Flow, Laplace

N = 20_000
KEY = jax.random.key(0)


def _same(t, cdf):
    """The sample is not unlike the distribution: p = 1e-3, for a fixed seed."""
    assert stats.kstest(np.asarray(t, np.float64), cdf).pvalue > 1e-3


def _unweighted(weight):
    np.testing.assert_array_equal(weight, 1)
    assert weight.dtype == jnp.float32


def test_uniform():
    t, weight = times.uniform()(KEY, N)
    _unweighted(weight)
    _same(t, stats.uniform(1e-4, 1 - 1e-4).cdf)
    assert t.dtype == jnp.float32 and t.min() >= 1e-4 and t.max() < 1  # sigma(0) = 0 has no target
    _same(times.uniform(2.0, 5.0)(KEY, N)[0], stats.uniform(2, 3).cdf)


def test_stratified_visits_each_stratum_once():
    for seed in range(5):
        t, weight = times.stratified(1.0, 3.0)(jax.random.key(seed), 64)
        _unweighted(weight)
        np.testing.assert_array_equal(np.sort(np.floor((np.asarray(t) - 1) / 2 * 64)), np.arange(64))


def test_stratified_is_uniform_at_every_place_of_the_batch():
    t, _ = jax.vmap(lambda key: times.stratified(0.0, 1.0)(key, 4))(jax.random.split(KEY, N // 4))
    for place in range(4):
        _same(t[:, place], stats.uniform().cdf)


@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (times.logit_normal(0.5, 0.8, stratified=True), lambda t: (np.log(t / (1 - t)) - 0.5) / 0.8),
        (times.log_normal(EDM(), -0.9, 0.8, stratified=True), lambda t: (np.log(t) + 0.9) / 0.8),
    ],
    ids=["logit_normal", "log_normal"],
)
def test_normal_times_in_strata(draw, law):
    """A batch has one time in each stratum of the law; at each place of the batch they follow it, and are finite."""
    for seed in range(3):
        t, weight = draw(jax.random.key(seed), 64)
        _unweighted(weight)
        strata = np.sort(np.floor(64 * stats.norm.cdf(law(np.float64(t)))))
        np.testing.assert_array_equal(strata, np.arange(64))
    t, _ = jax.jit(jax.vmap(lambda key: draw(key, 4)))(jax.random.split(KEY, N // 4))
    assert np.isfinite(law(np.float64(t))).all()
    for place in range(4):
        _same(law(np.float64(t[:, place])), stats.norm.cdf)


def test_log_normal():
    """ln sigma ~ N(-1.2, 1.2^2) as in EDM, and ln(sigma / alpha) for any process."""
    for process in (EDM(), Flow(), VP(), Discrete.linear()):
        draw = times.log_normal(process, -0.9, 0.8)
        lam, weight = jax.jit(lambda draw=draw, p=process: (p(draw(KEY, N)[0]).lam, draw(KEY, N)[1]))()
        _unweighted(weight)
        _same(-lam, stats.norm(-0.9, 0.8).cdf)
    t, _ = times.log_normal(EDM())(KEY, N)
    _same(np.log(t), stats.norm(-1.2, 1.2).cdf)


def test_logit_normal():
    t, weight = times.logit_normal(0.5, 0.8)(KEY, N)
    _unweighted(weight)
    _same(np.log(t / (1 - t)), stats.norm(0.5, 0.8).cdf)
    assert np.mean(t) > 0.55  # above 0 favours noise
    assert t.min() > 0 and t.max() < 1


def test_scheduled():
    """log SNR of Hang et al.'s law for a network that is told sigma; and a density over the schedule's own times."""

    @jax.jit
    def draw(key):
        t, _ = times.scheduled(EDM(), Laplace(0.2, 0.5))(key, N)
        return EDM()(t).log_snr, times.scheduled(Cosine(), Flow(), times.importance(jnp.array([1.0, 3.0])))(key, N)

    log_snr, (t, weight) = draw(KEY)
    _same(log_snr, stats.laplace(0.2, 0.5).cdf)
    flow = 1 / (1 + 1 / np.tan(0.5 * np.pi * np.asarray(t, np.float64)))  # its sigma, of the same sigma / alpha
    _same(flow, lambda x: np.interp(x, [0, 0.5, 1], [0, 0.25, 1]))
    np.testing.assert_allclose(weight, np.where(flow < 0.50005, 2.0, 2 / 3), rtol=1e-6)
    # By default at the schedule's own times: 1..T of a table, and EDM's law of log sigma.
    t, _ = times.scheduled(EDM(), EDM())(KEY, N)
    _same(np.log(t), stats.norm(-1.2, 1.2).cdf)
    table = Discrete.linear(50)
    found = np.unique(np.round(np.asarray(EDM()(times.scheduled(EDM(), table)(KEY, N)[0]).lam, np.float64), 3))
    np.testing.assert_allclose(found, np.sort(table(jnp.arange(1, 51)).lam), atol=2e-3)


def test_on_a_grid():
    """Each time from which a step starts, equally likely; a table's stay integers; the last level may repeat."""
    for process, steps in ((Flow(), [1.0, 0.75, 0.5, 0.25]), (Discrete.linear(8), [8, 6, 4, 2])):
        grid = process(jnp.asarray([*steps, 0, 0, 0]))
        t, weight = times.on_grid(grid)(KEY, N)
        _unweighted(weight)
        assert t.dtype == grid.t.dtype
        values, counts = np.unique(t, return_counts=True)
        np.testing.assert_array_equal(values, np.sort(steps))
        assert stats.chisquare(counts).pvalue > 1e-3


def test_u_shaped():
    t, weight = times.u_shaped(3.0)(KEY, N)
    _unweighted(weight)
    # The integral of exp(3 t) + exp(3 (1 - t)), by its antiderivative.
    _same(t, lambda t: 0.5 + (np.exp(3 * t) - np.exp(3 * (1 - t))) / (2 * (np.exp(3) - 1)))
    assert t.min() >= 1e-4 and t.max() <= 1


def test_integers():
    t, weight = times.uniform_discrete(10)(KEY, N)
    _unweighted(weight)
    assert t.dtype == jnp.int32 and set(np.asarray(t).tolist()) == set(range(1, 11))
    assert stats.chisquare(np.bincount(t)[1:]).pvalue > 1e-3
    np.testing.assert_array_equal(times.uniform_discrete(1)(KEY, 3)[0], [1, 1, 1])


def test_integers_with_probabilities():
    probs = np.array([4.0, 1.0, 0.0, 3.0])
    t, weight = times.uniform_discrete(4, probs)(KEY, N)
    count = np.bincount(t, minlength=5)[1:]
    assert count[2] == 0
    assert stats.chisquare(count[[0, 1, 3]], N * probs[[0, 1, 3]] / 8).pvalue > 1e-3
    np.testing.assert_allclose(weight, 1 / (4 * probs[np.asarray(t) - 1] / 8), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, times.uniform_discrete(4, [4, 1, 0, 3])(KEY, N), (t, weight))


def _is_uniform_mean(values, weight, exact):
    product = np.asarray(values * weight, np.float64)
    assert abs(product.mean() - exact) < 4 * product.std() / np.sqrt(len(product))


def test_weights_are_unbiased_over_integers():
    """E[w f(t)] = mean of f over 1..T, whatever the positive probabilities."""
    f = np.arange(1.0, 9) ** 2
    t, weight = times.uniform_discrete(8, jnp.arange(8.0, 0.0, -1))(KEY, N)
    _is_uniform_mean(f[np.asarray(t) - 1], np.asarray(weight), f.mean())


def test_weights_are_unbiased_over_an_interval():
    """E[w f(t)] = mean of f over [low, high]; the density is the one given."""
    density = np.array([1.0, 5.0, 2.0, 0.5])
    t, weight = times.importance(density, 1.0, 3.0)(KEY, N)
    _is_uniform_mean(np.asarray(t) ** 2, np.asarray(weight), (27 - 1) / 3 / 2)
    knots = np.concatenate([[0.0], np.cumsum(density / density.sum())])
    _same(t, lambda x: np.interp(x, [1, 1.5, 2, 2.5, 3], knots))
    jax.tree.map(np.testing.assert_array_equal, times.importance([1, 5, 2, 0.5], 1.0, 3.0)(KEY, N), (t, weight))


def test_importance_reduces_the_variance():
    """With the density proportional to the loss, every product is about its mean."""
    loss = lambda t: np.exp(-3 * t)  # noqa: E731
    density = loss((np.arange(100) + 0.5) / 100)
    t, weight = times.importance(density, 0.0, 1.0)(KEY, N)
    plain, _ = times.uniform(0.0, 1.0)(KEY, N)
    assert np.std(loss(np.asarray(t)) * weight) < 0.05 * np.std(loss(np.asarray(plain)))


@pytest.mark.slow
def test_density_may_be_traced():
    @jax.jit
    def draw(density, probs):
        return times.importance(density)(KEY, 8), times.uniform_discrete(4, probs)(KEY, 8)

    density, probs = jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
    eager = times.importance(density)(KEY, 8), times.uniform_discrete(4, probs)(KEY, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), draw(density, probs), eager)


@pytest.mark.slow
def test_density_may_be_float32_under_x64(x64):
    t, weight = times.importance(jnp.ones(4, jnp.float32))(KEY, 8)
    assert t.dtype == weight.dtype == jnp.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: times.uniform(1.0, 1.0),
        lambda: times.stratified(1.0, 0.5),
        lambda: times.importance(jnp.ones(3), 2.0, 1.0),
        lambda: times.uniform_discrete(0),
        lambda: times.u_shaped(0.0),
        lambda: times.on_grid(Flow()(0.5)),
        lambda: times.uniform_discrete(4, jnp.ones(3)),
        lambda: times.uniform_discrete(4, [1, 2, 3]),
        lambda: times.importance(1.0),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError, match="got"):
        make()
