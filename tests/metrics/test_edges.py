"""The F1 score of edges."""

import numpy as np
import pytest

from jaxdiff.metrics import edge_f1


def test_it_is_the_harmonic_mean_of_precision_and_recall():
    rng = np.random.default_rng(0)
    edges, asked = rng.random((2, 5, 6, 7))
    found, wanted = edges > 0.4, asked > 0.4
    both = (found & wanted).sum((1, 2))
    precision, recall = both / found.sum((1, 2)), both / wanted.sum((1, 2))
    want = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(edge_f1(edges, asked, threshold=0.4), want)
    np.testing.assert_array_equal(edge_f1(0 * edges, 0 * asked, threshold=0.4), 1)
    np.testing.assert_array_equal(edge_f1(0 * edges, asked, threshold=0.4), 0)
    with pytest.raises(ValueError, match="of one shape"):
        edge_f1(edges, asked[:4], threshold=0.4)
