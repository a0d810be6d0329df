"""The classifier of a reward without training."""

from pathlib import Path

import jax

from jaxdiff import alignment
from jaxdiff.media.classifier import FittedClassifier, init_classifier, save_classifier


def untrained_reward(run: Path, shape: tuple[int, ...], classes: int) -> FittedClassifier:
    """Keep one in a run's folder, where `alignment.load_reward` finds it."""
    classifier = init_classifier(shape, classes, jax.random.key(1))
    save_classifier(run / alignment.REWARD, classifier)
    return classifier
