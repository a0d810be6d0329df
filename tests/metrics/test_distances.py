import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxdiff.metrics import Statistics, frechet, kernel_distance, sliced_wasserstein


def exact(mean, covariance, n=1000):
    """Statistics with exactly this mean and covariance."""
    covariance = np.asarray(covariance, float)
    return Statistics(n, np.asarray(mean, float), covariance * (n - 1))


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def test_frechet_of_commuting_gaussians():
    """With common eigenvectors it is |mu - nu|^2 + sum (sqrt a - sqrt b)^2."""
    a, b, q = np.array([4.0, 1.0, 9.0]), np.array([1.0, 16.0, 0.25]), rotation(3)
    mu, nu = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    want = 5.0 + (2 - 1) ** 2 + (1 - 4) ** 2 + (3 - 0.5) ** 2
    got = frechet(exact(mu, q * a @ q.T), exact(nu, q * b @ q.T))
    assert got == pytest.approx(want, rel=1e-12)


def test_frechet_of_planar_gaussians_that_do_not_commute():
    """In two dimensions tr (AB)^{1/2} = sqrt(tr AB + 2 sqrt(det A det B))."""
    a, b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    want = np.trace(a) + np.trace(b) - 2 * root
    assert frechet(exact([0, 0], a), exact([0, 0], b)) == pytest.approx(want, rel=1e-12)


def test_frechet_is_symmetric_and_zero_for_equals_even_when_singular():
    x = np.random.default_rng(0).normal(size=(10, 40))  # fewer examples than features
    y = np.random.default_rng(1).normal(size=(12, 40))
    assert frechet(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9)
    assert frechet(x, Statistics.of(y)) == frechet(x, y)


def test_frechet_of_samples_approaches_the_closed_form():
    rng = np.random.default_rng(0)
    std_a, std_b, shift = np.array([1.0, 2.0, 0.5, 1.5]), np.array([2.0, 1.0, 0.5, 3.0]), np.arange(4.0)
    a, b = rng.normal(size=(40_000, 4)) * std_a, rng.normal(size=(40_000, 4)) * std_b + shift
    want = np.sum(shift**2) + np.sum((std_a - std_b) ** 2)
    # Four standard errors: the shift term leads with 2 |shift| sqrt(std_a^2 + std_b^2) / sqrt(N) < 0.13.
    assert frechet(a, b) == pytest.approx(want, abs=0.5)


def test_frechet_is_biased_upwards_for_few_examples():
    """Two samples of one Gaussian: the means alone add 2 D/N, the covariances more."""
    rng = np.random.default_rng(0)
    few = np.mean([frechet(rng.normal(size=(40, 20)), rng.normal(size=(40, 20))) for _ in range(20)])
    many = np.mean([frechet(rng.normal(size=(400, 20)), rng.normal(size=(400, 20))) for _ in range(20)])
    assert few > 2 * 20 / 40 and many > 2 * 20 / 400
    assert 6 < few / many < 16  # falls like 1/N


def mmd2_by_loops(x, y):
    def k(u, v):
        return (sum(p * q for p, q in zip(u, v, strict=True)) / len(u) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_kernel_distance_is_the_mean_of_the_blocks_double_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(14, 3)), rng.normal(0.5, 1.0, size=(10, 3))
    shuffle = np.random.default_rng(3)
    i, j = shuffle.permutation(14), shuffle.permutation(10)
    values = [mmd2_by_loops(x[i[:7]], y[j[:5]]), mmd2_by_loops(x[i[7:]], y[j[5:]])]
    got = kernel_distance(x, y, blocks=2, seed=3)
    assert got.value == pytest.approx(np.mean(values), rel=1e-10)
    assert got.standard_error == pytest.approx(abs(values[0] - values[1]) / 2, rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_error_honest_for_equal_distributions():
    rng = np.random.default_rng(0)
    got = [kernel_distance(rng.normal(size=(100, 4)), rng.normal(size=(100, 4)), blocks=5) for _ in range(300)]
    values, errors = np.array(got).T
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 3.5 * spread / np.sqrt(len(values))
    assert (values < 0).mean() > 0.3  # an estimate clipped or biased upwards would not fall below zero
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.25)


@pytest.mark.slow
def test_kernel_distance_of_a_shift_is_the_closed_form():
    """In one dimension, with k = (xy + 1)^3, MMD^2 = sum_n C(3, n) (E x^n - E y^n)^2; moments of N(m, 1)."""
    rng, m = np.random.default_rng(0), 0.7
    want = 3 * m**2 + 3 * (m**2) ** 2 + (m**3 + 3 * m) ** 2
    value, error = kernel_distance(rng.normal(size=(20_000, 1)), rng.normal(m, 1, size=(20_000, 1)), blocks=20)
    assert abs(value - want) < 4 * error
    assert error < 0.05 * want


def test_kernel_distance_is_seeded():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 3))
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1)
    assert kernel_distance(x, y, seed=1) != kernel_distance(x, y, seed=2)


def test_sliced_wasserstein_of_numbers_is_the_best_pairing():
    a, b = np.random.default_rng(0).normal(size=(2, 9, 1))
    cost = (a - b.T) ** 2
    best = np.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein(a, b, directions=3) == pytest.approx(best, rel=1e-12)


def test_sliced_wasserstein_in_closed_form():
    """Each direction sees 1/D of the points on the axes, whose copies twice as far out are paired with them."""
    axes, rng = np.concatenate([np.eye(3), -np.eye(3)]), np.random.default_rng(0)
    assert sliced_wasserstein(axes, 2 * axes[rng.permutation(6)]) == pytest.approx(3**-0.5, rel=1e-12)
    x, shift = rng.normal(size=(50, 3)), np.array([1.0, -2.0, 0.5])
    # The mean over directions of (direction . d)^2 is |d|^2 / D, with a relative deviation below 2 / sqrt(directions).
    want = np.linalg.norm(shift) / np.sqrt(3)
    assert sliced_wasserstein(x, x + shift, directions=20_000) == pytest.approx(want, rel=0.02)
    assert sliced_wasserstein(x, 2 * x, seed=1) != sliced_wasserstein(x, 2 * x, seed=2)
    assert sliced_wasserstein(x, x[::-1]) == 0


def test_wrong_arguments_are_refused():
    x = np.zeros((30, 3))
    with pytest.raises(ValueError, match="width 3 and 2"):
        frechet(x, x[:, :2])
    with pytest.raises(ValueError, match="width 3 and 2"):
        kernel_distance(x, x[:, :2])
    for blocks in (1, 16):
        with pytest.raises(ValueError, match="blocks"):
            kernel_distance(x, x, blocks=blocks)
    with pytest.raises(ValueError, match="at least 2"):
        frechet(x[:1], x)
    with pytest.raises(ValueError, match="b has values"):
        kernel_distance(x, np.full((30, 3), np.inf))
    for other in (x[:, :2], x[:9]):
        with pytest.raises(ValueError, match=r"as many features .* got a of \(30, 3\)"):
            sliced_wasserstein(x, other)
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        sliced_wasserstein(x, x, directions=0)
