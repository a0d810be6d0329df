"""Tensors in another order or shape: any part of them is that part of the whole."""

import numpy as np
import pytest

from jaxdiff.interop.formats.views import Identity, Rows, Transposed


class Held:
    """An array as a file has it, which notes how much was read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, "F32", 0

    def __getitem__(self, index):
        part = self.array[index if index else ...]
        self.read += part.size
        return part


MATRIX = np.arange(48.0).reshape(12, 4)
ROWS = np.array([7, 3, 4, 5])
PARTS = [(), (slice(1, 3), slice(None)), (slice(None), slice(2, 3)), (slice(0, 0), slice(None)), (slice(3, 1, -1),) * 2]


@pytest.mark.parametrize(
    ("view", "whole"),
    [
        (lambda: Rows(Held(MATRIX)), MATRIX),
        (lambda: Rows(Held(MATRIX), ROWS), MATRIX[ROWS]),
        (lambda: Rows(Held(MATRIX[:, :, None, None]), ndim=2), MATRIX),
        (lambda: Rows(Held(MATRIX[:, :, None]), ROWS, 2), MATRIX[ROWS]),
        (lambda: Transposed(Held(MATRIX)), MATRIX.T),
        (lambda: Identity(5, "F32"), np.eye(5)),
    ],
)
def test_parts(view, whole):
    made = view()
    assert made.shape == whole.shape and made.dtype == "F32"
    for part in PARTS:
        np.testing.assert_array_equal(made[part], whole[part if part else ...])
    np.testing.assert_array_equal(Rows(Held(MATRIX[:, 0]), ROWS)[()], MATRIX[ROWS, 0])


def test_little_more_is_read_than_asked_for():
    held = Held(MATRIX)
    assert Rows(held, np.arange(4, 8))[slice(1, 3), slice(0, 2)].shape == (2, 2) and held.read == 4


def test_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"\(12, 2, 2\) is no matrix"):
        Rows(Held(MATRIX.reshape(12, 2, 2)), ndim=2)
