import numpy as np
import pytest

from jaxdiff.metrics import accuracy


def test_overall_and_by_class():
    logits = np.array([[3.0, 1, 0, 0], [0, 2, 1, 0], [0, 2, 1, 0], [0, 0, 9, 0]])
    overall, by_class = accuracy(logits, np.array([0, 1, 2, 2]))
    assert overall == 0.75
    np.testing.assert_array_equal(by_class, [1.0, 1.0, 0.5, np.nan])


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        (np.zeros((2, 3)), np.array([0, 3]), r"0 \.\. 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), r"0 \.\. 2"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integers"),
        (np.zeros((2, 3)), np.array([0]), r"\(2, 3\)"),
        (np.zeros(3), np.array([0, 1, 2]), r"\(3,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), "N, K >= 1"),
        (np.full((1, 3), np.nan), np.array([0]), "NaN"),
    ],
)
def test_wrong_arguments_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(logits, labels)
