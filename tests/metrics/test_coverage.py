import numpy as np
import pytest

from jaxdiff.metrics import coverage, mode_coverage, precision_recall


def two_modes(n, seed, gap=50.0):
    """Half of the points around 0, half around `gap`."""
    x = np.random.default_rng(seed).normal(size=(n, 3))
    x[n // 2 :] += gap
    return x


def by_loops(real, fake, k):
    def share(points, manifold):
        inside = 0
        for p in points:
            for m in manifold:
                others = sorted(np.linalg.norm(manifold - m, axis=1))  # others[0] is m itself
                if np.linalg.norm(p - m) <= others[k]:
                    inside += 1
                    break
        return inside / len(points)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_definition(k):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 2)), rng.normal(0.7, 1.3, size=(30, 2))
    assert precision_recall(real, fake, k=k) == pytest.approx(by_loops(real, fake, k))


def test_chunks_do_not_change_it(monkeypatch):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 2)), rng.normal(0.7, 1.3, size=(30, 2))
    whole = precision_recall(real, fake)
    monkeypatch.setattr(coverage, "_ROWS", 7)
    assert precision_recall(real, fake) == whole


def test_disjoint_clouds_share_nothing():
    x = np.random.default_rng(0).normal(size=(100, 3))
    assert precision_recall(x, x + 100.0) == (0.0, 0.0)


def test_equal_clouds_share_nearly_everything():
    precision, recall = precision_recall(two_modes(600, 0), two_modes(600, 1))
    assert precision > 0.9 and recall > 0.9
    x = two_modes(100, 0)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_a_dropped_mode_costs_recall_alone():
    precision, recall = precision_recall(two_modes(600, 0), two_modes(600, 1)[:300])
    assert precision > 0.9
    assert recall == pytest.approx(0.48, abs=0.05)  # half the data, less its outliers


def test_an_invented_mode_costs_precision_alone():
    precision, recall = precision_recall(two_modes(600, 0)[:300], two_modes(600, 1))
    assert precision == pytest.approx(0.48, abs=0.05)
    assert recall > 0.9


def test_copies_of_one_example_have_no_recall():
    real = two_modes(200, 0)
    precision, recall = precision_recall(real, np.repeat(real[:1], 200, 0))
    assert precision == 1.0 and recall <= 1 / 200


def test_wrong_arguments_are_refused():
    x = np.zeros((5, 2))
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"1 \.\. 4"):
            precision_recall(x, x, k=k)
    with pytest.raises(ValueError, match="width 2 and 1"):
        precision_recall(x, x[:, :1])
    with pytest.raises(ValueError, match="fake has values"):
        precision_recall(x, x + np.nan)


def test_modes_that_are_hit():
    labels = np.repeat(np.arange(25), 4)
    assert mode_coverage(labels, 25) == (25, pytest.approx(0, abs=1e-12))
    assert mode_coverage(np.full(7, 24), 25) == (1, pytest.approx(np.log(25)))
    assert mode_coverage(np.repeat([0, 5, 9], 8), 12) == (3, pytest.approx(np.log(4)))  # a quarter, evenly
    # Shares 3/4 and 1/4: KL(samples || uniform), not the other way around, which is 0.1438.
    assert mode_coverage([0, 1, 0, 0], 2) == (2, pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5)))


def test_a_mode_needs_enough_samples():
    labels = np.repeat([0, 1, 2], [1, 3, 4])
    assert [mode_coverage(labels, 3, at_least=n).covered for n in (1, 2, 3, 4, 5)] == [3, 2, 2, 1, 0]


def test_kl_of_finite_samples_is_as_documented():
    draws = np.random.default_rng(0).integers(0, 100, (200, 2000))
    assert np.mean([mode_coverage(draw, 100).kl for draw in draws]) == pytest.approx(99 / 4000, rel=0.05)


def test_modes_that_do_not_exist_are_refused():
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"in 0 \.\. 2"):
            mode_coverage(labels, 3)
    for labels in ([], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(ValueError, match="integers"):
            mode_coverage(labels, 3)
    with pytest.raises(ValueError, match="at least 1"):
        mode_coverage([0], 0)
    with pytest.raises(ValueError, match="at least 1"):
        mode_coverage([0], 3, at_least=0)
