"""Test data: three easily separable classes of 12 x 12 pictures, each with its own variety."""

from functools import cache

import numpy as np
from helpers.optimized import optimized

from jaxdiff.media.classifier import FittedClassifier, fit_classifier

CLASSES = 3


def shapes(n, seed):
    """Bars: at the top, at the bottom, upright in the middle; brightness, background and noise vary."""
    rng = np.random.default_rng(seed)
    label = np.arange(n, dtype=np.int32) % CLASSES
    x = rng.normal(0, 0.1, (n, 12, 12, 1)) + rng.uniform(-0.9, -0.3, (n, 1, 1, 1))
    bright = rng.uniform(0.3, 0.9, n)
    places = [np.s_[1:4, 1:11], np.s_[8:11, 1:11], np.s_[1:11, 5:7]]
    for image, c, value in zip(x, label, bright, strict=True):
        image[places[c]] = value
    return np.clip(x, -1, 1).astype(np.float32), label


@cache
def fitted() -> FittedClassifier:
    """The classifier of these pictures, trained once for all tests."""
    with optimized():
        return fit_classifier(*shapes(600, 0), num_classes=CLASSES, steps=40, batch_size=32)
