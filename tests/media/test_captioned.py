"""Samples of captions, measured against the pictures that have these captions."""

import numpy as np
import pytest

from jaxdiff import conditions, data, media
from jaxdiff.media import Samples

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 4, 4, 3), np.uint8)
CAPTIONS = [(f"picture {i}", f"thing {i // 2}") for i in range(20)]  # two have the caption "thing"


def medium(**options):
    features = lambda: lambda images: images.reshape(len(images), -1)  # noqa: E731
    return media.captioned(data.ArraySource(X, captions=CAPTIONS), **{"features": features, **options})


def test_recognized_is_whose_nearest_picture_has_the_caption(tmp_path):
    made = medium()
    assert made.prompts(10) == [f"picture {i}" for i in range(0, 20, 2)]
    assert made.prompts(25)[:21] == [*(f"picture {i}" for i in range(20)), "picture 0"]
    measure = made.evaluator(tmp_path, conditions.none())
    true = data.to_float(X)
    exact = measure(Samples(true, {})).values
    assert exact["recognized"] == 1 and exact["chance"] == 1 / 20 and exact["count"] == 20
    assert exact["kernel_distance"] == exact["kernel_distance_real"] and abs(exact["feature_distance"]) < 1e-6
    # Another picture of the same caption counts, one of another caption doesn't.
    partner = true[np.arange(20) ^ 1]
    assert measure(Samples(partner, {})).values["recognized"] == 1
    shifted = measure(Samples(np.roll(true, 2, axis=0), {}))
    assert shifted.values["recognized"] == 0 and "0.0%, by chance 5.00%" in shifted.text
    half = measure(Samples(true[::2], {})).values  # ten samples are of every other picture
    assert half["recognized"] == 1 and half["count"] == 10 and abs(half["feature_distance"]) < 1e-6


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="captions of these pictures are not known"):
        media.captioned(data.ArraySource(X), features=None)
    with pytest.raises(ValueError, match="measured by features: install it"):
        medium(features=None, missing="install it").evaluator(tmp_path, conditions.none())
