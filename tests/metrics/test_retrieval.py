"""R@1 on vectors whose answer is known."""

import numpy as np
import pytest

from jaxdiff.metrics import recall_at_1


def test_what_is_nearest_is_counted():
    eye = np.eye(4)
    assert recall_at_1(eye, eye, of=4) == 1
    assert recall_at_1(np.roll(eye, 1, 0), eye, of=4) == 0
    queries = eye[[0, 1, 2, 2]]  # the last one finds another
    assert recall_at_1(queries, eye, of=4) == 0.75
    assert recall_at_1(eye, queries, of=4) == (3 + 1 / 4 - 1 / 2) / 4  # two share the third's, the fourth finds four


def test_collapsed_vectors_find_by_chance():
    assert recall_at_1(np.ones((10, 3)), np.ones((10, 3)), of=5) == pytest.approx(1 / 5)


def test_equal_names_are_both_right():
    eye = np.eye(3)[[0, 0, 2]]
    assert recall_at_1(eye, eye, of=3) == pytest.approx(2 / 3)
    assert recall_at_1(eye, eye, ["a", "a", "b"], of=3) == 1


def test_blocks_are_apart_and_a_part_of_one_is_left_out():
    eye = np.eye(2)
    a = np.concatenate([eye, eye[::-1], eye[:1]])
    b = np.concatenate([eye, eye, eye[1:]])
    assert recall_at_1(a, b, of=2) == 0.5
    # Random vectors: chance is one in as many as there are.
    rng = np.random.default_rng(0)
    found = recall_at_1(rng.normal(size=(4000, 8)), rng.normal(size=(4000, 8)), of=10)
    assert abs(found - 0.1) < 4 * np.sqrt(0.09 / 4000)


@pytest.mark.parametrize(
    ("a", "b", "names"), [((3, 2), (4, 2), None), ((3, 2), (3, 2), ["a"]), ((1, 2), (1, 2), None), ((3,), (3,), None)]
)
def test_what_is_no_pair_is_refused(a, b, names):
    with pytest.raises(ValueError, match=r"pairs need|at least as many|must be a non-empty matrix"):
        recall_at_1(np.ones(a), np.ones(b), names, of=2)
