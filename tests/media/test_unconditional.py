"""Images without classes: distances that a shift and a blur have, and that held-out images have of each other."""

import numpy as np
import pytest

from jaxdiff import conditions, media


def test_distances(tmp_path):
    rng = np.random.default_rng(0)
    real = rng.uniform(-0.5, 0.5, (120, 6, 6, 1)).astype(np.float32)
    asked = []
    medium = media.unconditional((6, 6, 1), lambda count: asked.append(count) or real[:count])
    measure = medium.evaluator(tmp_path, conditions.none())

    def values(x):
        return measure(media.Samples(x, {})).values

    same = values(real[:60])
    assert asked == [120] and same["count"] == 60 and same["pixels"] == same["edges"] == 0
    assert same["pixels_real"] > 0.02 and same["edges_real"] > 0.02
    # A shift by d is one of about d in pixels, and none in differences of neighbours; a blur of columns is the reverse.
    shifted = values(real[:60] + 0.3)
    assert abs(shifted["pixels"] - 0.3) < 0.1 and shifted["edges"] < 1e-6
    blurred = values(np.repeat(real[:60].mean(axis=2, keepdims=True), 6, axis=2))
    assert blurred["edges"] > 3 * blurred["edges_real"]
    # Samples are clipped, as they are shown.
    np.testing.assert_allclose(
        values(np.where(real[:60] > 0, 7, real[:60]))["pixels"], values(np.where(real[:60] > 0, 1, real[:60]))["pixels"]
    )
    assert "of held-out images" in measure(media.Samples(real[:60], {})).text
    with pytest.raises(ValueError, match="height, width"):
        media.unconditional((6, 6), lambda count: real)
