"""Evaluation of class-conditional samples by a classifier: its accuracy, and distances of its features to real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdiff.metrics.classification import accuracy
from jaxdiff.metrics.coverage import precision_recall
from jaxdiff.metrics.distances import KernelDistance, kernel_distance

__all__ = ["LEAST_OF_CLASS", "Classify", "as_images", "check_classes", "evaluate", "format_report"]

LEAST_OF_CLASS = 4  # images

Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # images -> (logits, features)


def evaluate(
    fake_x,
    fake_label,
    test_x,
    test_label,
    *,
    train_x,
    train_label,
    classify: Classify,
    k: int = 3,
    blocks: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate class-conditional samples, and real training images in the same way, for comparison.

    The accuracy alone does not detect a model that repeats one image for each class; the kernel distance and the recall
    do. Their absolute size means little: compare the samples' values with the real ones. These are computed from as
    many training images of each class as there are samples, so that they are what perfect samples would reach.

    The kernel distance is computed for each class and averaged, as intra-FID is (Miyato and Koyama 2018). Over all
    classes at once it would be biased, since equal counts of the classes are no random draw, and differences between
    classes would dominate variety within a class.

    Args:
        fake_x: samples, float [N, H, W, C] in [-1, 1].
        fake_label: classes of the samples, int [N].
        test_x: real images that trained neither the model nor the classifier, float [M, H, W, C] in [-1, 1].
        test_label: their classes, int [M].
        train_x: real training images, float [T, H, W, C] in [-1, 1].
        train_label: their classes, int [T].
        classify: images -> (logits, features), e.g. from `fit_classifier`.
        k: number of the neighbour that defines the radius in precision and recall.
        blocks: number of parts of each class for the standard error of the kernel distance; fewer for a class with
            less than two images per part.
        seed: seed of all random choices.

    Returns:
        a dict for JSON: "count", and "samples" and "real", each with "accuracy", "accuracy_by_class"
        (None for a class without examples; the real one is the test set's), and "kernel_distance",
        "kernel_distance_error", "precision" and "recall" against test images of the samples' classes.

    Raises:
        ValueError: shapes or labels do not fit, values are not finite, or a class of the samples has fewer than
            `LEAST_OF_CLASS` images among the samples, the test set or the training set.
    """
    rng = np.random.default_rng(seed)
    train_x, train_label = as_images(train_x), np.asarray(train_label)
    fake_label, test_label = np.asarray(fake_label), np.asarray(test_label)
    for name, labels in (("samples", fake_label), ("test set", test_label), ("training set", train_label)):
        check_classes(name, labels, fake_label)
    chosen = _matching(train_label, fake_label, rng)
    (fake_logits, fake), (test_logits, test) = classify(fake_x), classify(test_x)
    report: dict[str, Any] = {"count": {"samples": len(fake), "train": len(chosen), "test": len(test)}}
    for name, logits, labels in (("samples", fake_logits, fake_label), ("real", test_logits, test_label)):
        overall, by_class = accuracy(logits, labels)
        shares = [None if np.isnan(share) else float(share) for share in by_class]
        report[name] = {"accuracy": overall, "accuracy_by_class": shares}
    real, real_label = classify(train_x[chosen])[1], train_label[chosen]
    relevant = np.isin(test_label, fake_label)
    test, test_label = test[relevant], test_label[relevant]
    # Precision and recall depend on the counts: all three sets get the same.
    count = min(len(fake), len(real), len(test))
    reference = _draw(test, count, rng)
    for name, features, labels in (("samples", fake, fake_label), ("real", real, real_label)):
        distance = _kernel_distance_by_class((features, labels), (test, test_label), blocks=blocks, seed=seed)
        precision, recall = precision_recall(reference, _draw(features, count, rng), k=k)
        report[name] |= {
            "kernel_distance": distance.value,
            "kernel_distance_error": distance.standard_error,
            "precision": precision,
            "recall": recall,
        }
    return report


def check_classes(name: str, labels: np.ndarray, expected: np.ndarray, class_names: Sequence[str] = ()) -> None:
    """Check that there are enough images of each class for `evaluate`.

    Args:
        name: of the images, for the error.
        labels: of the images, int [N].
        expected: the classes that are measured.
        class_names: one for each class; empty: classes are numbered.

    Raises:
        ValueError: of a class there are fewer than `LEAST_OF_CLASS`.
    """
    for c in np.unique(expected):
        count = np.count_nonzero(labels == c)
        if count < LEAST_OF_CLASS:
            which = repr(class_names[c]) if class_names else f"class {c}"
            raise ValueError(
                f"an evaluation needs at least {LEAST_OF_CLASS} images of each class; the {name} has {count} of {which}"
            )


def format_report(report: dict[str, Any], class_names: Sequence[str] = ()) -> str:
    """Format a report as a table.

    Args:
        report: from `evaluate`.
        class_names: one for each class; empty: classes are numbered.

    Returns:
        lines of text.

    Raises:
        ValueError: the number of names is not the number of classes.
    """
    fake, real, count = report["samples"], report["real"], report["count"]
    classes = len(fake["accuracy_by_class"])
    names = list(class_names) or [f"class {i}" for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f"there are {classes} classes, got {len(names)} names")
    rows = [("", f"{count['samples']} samples", "real images")]
    rows += [("recognized", _percent(fake["accuracy"]), _percent(real["accuracy"]))]
    by_class = zip(names, fake["accuracy_by_class"], real["accuracy_by_class"], strict=True)
    rows += [(f"  {name}", _percent(a), _percent(b)) for name, a, b in by_class]
    rows += [("kernel distance", _distance(fake), _distance(real))]
    rows += [(name, f"{fake[name]:.3f}", f"{real[name]:.3f}") for name in ("precision", "recall")]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}  {row[1]:>18}  {row[2]:>18}" for row in rows]
    return "\n".join(
        [
            *lines,
            f"Real images: recognized, of {count['test']} test images; the rest, {count['train']} training images.",
            "Distance (mean over classes), precision and recall are to the test images; too few kinds of pictures",
            "show in a large distance and a low recall.",
        ]
    )


def as_images(images) -> np.ndarray:
    """Check images and return them as float32 on the host.

    Args:
        images: numeric array [N, H, W, C], N >= 1.

    Returns:
        float32 array [N, H, W, C].

    Raises:
        ValueError: the shape is another one, or values are not finite.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [N, H, W, C] with N >= 1, got shape {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("images has values that are not finite")
    return images


def _draw(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` random rows."""
    return rows[rng.permutation(len(rows))[:count]]


def _kernel_distance_by_class(
    ours: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, blocks: int, seed: int
) -> KernelDistance:
    """Return the kernel distance to the test set, averaged over the classes of `ours`; both are (features, labels)."""
    # The scale of a hidden layer is arbitrary, but the cubic kernel depends on it.
    scale = np.sqrt(np.mean(np.square(test[0], dtype=np.float64)))
    estimates = []
    for c in np.unique(ours[1]):
        a, b = (features[labels == c] / scale for features, labels in (ours, test))
        estimates.append(kernel_distance(a, b, blocks=min(blocks, len(a) // 2, len(b) // 2), seed=seed))
    values, errors = np.array(estimates).T
    return KernelDistance(float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(estimates)))


def _matching(labels: np.ndarray, expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return random indices of labels: of each class as many as in `expected`, or all if there are fewer."""
    order = rng.permutation(len(labels))
    return np.concatenate([order[labels[order] == c][: np.sum(expected == c)] for c in np.unique(expected)])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _distance(part: dict[str, Any]) -> str:
    return f"{part['kernel_distance']:.3f} +- {part['kernel_distance_error']:.3f}"
