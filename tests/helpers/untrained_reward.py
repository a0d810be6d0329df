"""The classifier of a reward without training."""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdiff import alignment
from jaxdiff.media.classifier import FittedClassifier, save_classifier
from jaxdiff.networks.classifier import Classifier


def untrained_reward(run: Path, shape: tuple[int, ...], classes: int) -> FittedClassifier:
    """Keep one in a run's folder, where `alignment.load_reward` finds it."""
    params = jax.jit(Classifier(classes).init)(jax.random.key(1), jnp.zeros((1, *shape)))["params"]
    classifier = FittedClassifier(jax.device_get(params), shape)
    save_classifier(run / alignment.REWARD, classifier)
    return classifier
