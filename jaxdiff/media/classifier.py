"""The classifier that recognizes samples: fitted to real images, with its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.media import fitted
from jaxdiff.metrics.report import as_images
from jaxdiff.networks.classifier import Classifier
from jaxdiff.seeds import seed_key
from jaxdiff.types import Params

_SHIFT = 1  # pixels; more costs accuracy in a training this short
_HEAD = "head/bias"
_ROWS = 500  # images classified at a time


@dataclasses.dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A trained classifier: called with images it returns their logits and features.

    Attributes:
        params: of `networks.classifier.Classifier`.
        shape: (H, W, C) of the images that it takes.
    """

    params: Params
    shape: tuple[int, ...]

    def __call__(self, images) -> tuple[np.ndarray, np.ndarray]:
        """Classify images.

        Args:
            images: float [N, H, W, C] in [-1, 1], N >= 1.

        Returns:
            (logits float32[N, num_classes], features float32[N, D]).

        Raises:
            ValueError: images of another shape, or with values that are not finite.
        """
        images = as_images(images)
        if images.shape[1:] != self.shape:
            raise ValueError(f"the classifier takes images of shape {self.shape}, got {images.shape[1:]}")
        logits, features = [], []
        for start in range(0, len(images), _ROWS):
            part = images[start : start + _ROWS]
            padded = np.pad(part, [(0, _ROWS - len(part))] + [(0, 0)] * 3)  # one shape: one compilation
            out = jax.device_get(_forward(self.params, padded))
            logits.append(out[0][: len(part)])
            features.append(out[1][: len(part)])
        return np.concatenate(logits), np.concatenate(features)


def fit_classifier(
    train_images,
    train_labels,
    *,
    num_classes: int,
    seed: int = 0,
    steps: int = 1500,
    batch_size: int = 64,
    progress: bool = False,
) -> FittedClassifier:
    """Train a small classifier on real images, randomly mirrored and shifted.

    Args:
        train_images: float [N, H, W, C] in [-1, 1].
        train_labels: int [N], in 0 .. num_classes - 1.
        num_classes: at least 2.
        seed: of parameters, order and augmentation.
        steps: number of updates, at least 2.
        batch_size: images a step; at most N are used.
        progress: show a bar with the loss.

    Returns:
        the FittedClassifier.

    Raises:
        ValueError: images or labels that do not fit each other or these ranges, or a training that diverged.
    """
    images, labels = as_images(train_images), np.asarray(train_labels)
    _check_labels(labels, len(images), num_classes)
    for name, value, least in (("steps", steps, 2), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    key_init, key_steps = jax.random.split(seed_key(seed))
    network = Classifier(num_classes)
    params = init_classifier(images.shape[1:], num_classes, key_init).params
    batches = (
        {"x": images[index], "label": labels[index].astype(np.int32)}
        for index in _batches(len(images), min(batch_size, len(images)), steps, seed)
    )
    params = fitted.fit(
        _loss(network), params, batches, steps=steps, lr=3e-3, key=key_steps, name="classifier", progress=progress
    )
    return FittedClassifier(params, images.shape[1:])


def init_classifier(shape: tuple[int, ...], num_classes: int, key: jax.Array) -> FittedClassifier:
    """Draw the parameters that a classifier's training begins with.

    Args:
        shape: (H, W, C) of the images.
        num_classes: at least 2.
        key: one PRNG key.
    """
    params = jax.jit(Classifier(num_classes).init)(key, jnp.zeros((1, *shape)))["params"]
    return FittedClassifier(params, shape)


def save_classifier(path, classifier: FittedClassifier) -> Path:
    """Write a classifier to one npz file, keyed by the paths of its parameters.

    Args:
        path: the file, ending in .npz; missing folders are made. It is replaced in one move.
        classifier: what to write.

    Returns:
        the path written.

    Raises:
        ValueError: another ending.
    """
    return fitted.save(path, classifier.params, shape=np.array(classifier.shape))


def load_classifier(path) -> FittedClassifier:
    """Read a classifier that `save_classifier` wrote.

    Args:
        path: the file.

    Returns:
        the FittedClassifier.

    Raises:
        ValueError: the file is not a classifier of this version's shapes.
        OSError: the file cannot be read.
    """
    return FittedClassifier(*fitted.load(path, _expected, "classifier"))


def _expected(arrays: dict[str, np.ndarray]) -> tuple[tuple[int, ...], Any]:
    """The shape of the images, which is taken from the arrays, and the shapes of the parameters."""
    shape = tuple(int(n) for n in arrays.pop("shape"))
    network = Classifier(arrays[_HEAD].size)
    return shape, jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))[
        "params"
    ]


@jax.jit
def _forward(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    network = Classifier(params["head"]["bias"].size)
    return network.apply({"params": params}, images)  # type: ignore[return-value]


def _loss(network: Classifier) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Return the cross entropy of randomly mirrored and shifted images as a Loss."""

    def loss(params, key, batch):
        key_flip, key_shift, key_dropout = jax.random.split(key, 3)
        x = batch["x"]
        flip = jax.random.bernoulli(key_flip, 0.5, (len(x), 1, 1, 1))
        x = _shift(jnp.where(flip, x[:, :, ::-1], x), key_shift)
        logits, _ = network.apply({"params": params}, x, train=True, rngs={"dropout": key_dropout})
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}

    return loss


def _shift(x: jax.Array, key: jax.Array) -> jax.Array:
    """Move each image by up to _SHIFT pixels in either direction, repeating its border."""
    padded = jnp.pad(x, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), mode="edge")
    corner = jax.random.randint(key, (len(x), 2), 0, 2 * _SHIFT + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:]))(padded, corner)


def _batches(size: int, batch_size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the indices of each step's batch: epochs in random order, joined without a gap."""
    rng = np.random.default_rng(seed)
    order = np.zeros(0, int)
    for _ in range(steps):
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(size)])
        yield order[:batch_size]
        order = order[batch_size:]


def _check_labels(labels: np.ndarray, count: int, num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be {count} integers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0 .. {num_classes - 1}, got {labels.min()} .. {labels.max()}")
