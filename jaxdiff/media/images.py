"""Images: grids of pictures, single files, arrays; measured by a classifier where the data has classes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import data
from jaxdiff.conditions import Condition
from jaxdiff.media.base import Evaluator, Medium, Report, Samples, as_decoded
from jaxdiff.media.captions import save_captioned
from jaxdiff.media.files import save_npz, save_png, save_pngs
from jaxdiff.metrics.report import LEAST_OF_CLASS, check_classes, evaluate, format_report

__all__ = ["images", "save_images"]

MOST_REAL = 50_000  # pictures of a split that samples are compared with, and that fit the classifier


def images(
    shape: tuple[int, ...],
    *,
    source: str | None = None,
    decode: Callable[..., Any] | None = None,
    encode: Callable[..., Any] | None = None,
    preview: int = 50,
    captions: bool = False,
) -> Medium:
    """Images in [-1, 1].

    Args:
        shape: (height, width, channels) as the network gets it; 1 or 3 channels, unless they are decoded.
        source: name of the data for `jaxdiff eval`, see `data.open_dataset`; None: samples are not measured.
        decode: (params, x) -> images, of a network of latents.
        encode: (params, images) -> x, of such a network.
        preview: images in a preview; the last has twice as many.
        captions: write under each image of a grid what was asked for, and frame what training never shows.

    Returns:
        the medium.

    Raises:
        ValueError: a shape that is not that of images.
    """
    if decode is None and (len(shape) != 3 or shape[-1] not in (1, 3)):
        raise ValueError(
            f"images have a shape (height, width, 1 or 3), got {tuple(shape)}: media.latents and media.points are for "
            "other data, and docs/experiment.md shows a medium of your own"
        )

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        return _evaluator(run, condition, str(source), shape)

    return Medium(
        tuple(shape),
        partial(save_images, captions=captions),
        (".png", ".npz", ""),
        decode=as_decoded if decode is None else decode,
        encode=as_decoded if decode is None else encode,
        preview=preview,
        evaluator=None if source is None else evaluator,
        least_of_each=0 if source is None else LEAST_OF_CLASS,
    )


def save_images(out: Path, samples: Samples, *, captions: bool = False) -> None:
    """Write images as a grid (.png), arrays (.npz), or a folder of single pictures.

    Args:
        out: its suffix decides which.
        samples: images; a grid has a column for each of up to ten conditions that take turns, and no empty ones.
        captions: see `images`; arrays get them under the name "prompt".
    """
    columns = min(samples.choices or 10, 10, len(samples.x))
    if out.suffix == ".npz":
        prompts = {"prompt": np.array(samples.names)} if captions and samples.names else {}
        save_npz(out, x=samples.x, **samples.numbers(), **prompts)
    elif out.suffix == ".png" and captions and samples.names:
        save_captioned(out, samples.x, samples.names, columns, framed=samples.held_out)
    elif out.suffix == ".png":
        save_png(out, samples.x, columns)
    else:
        save_pngs(out, samples.x)


def _evaluator(run: Path, condition: Condition, source: str, shape: tuple[int, ...]) -> Evaluator:
    """Fit the run's classifier, the first time that it is needed, and return what measures samples."""
    from jaxdiff.media.classifier import fit_classifier, load_classifier, save_classifier
    from jaxdiff.progress import busy

    classes = condition.choices
    if "label" not in condition.spec or not classes:
        raise ValueError("eval needs an experiment with classes: its classifier recognizes them")
    test_set, train_set = _real(_open_held_out(source, shape)), _real(_open(source, "train", shape))
    for name, real in (("test set", test_set), ("training set", train_set)):  # before minutes go to the classifier
        check_classes(name, real["label"], np.arange(classes), condition.names)
    path = run / "judge.npz"
    if not path.exists():
        save_classifier(path, fit_classifier(train_set["x"], train_set["label"], num_classes=classes, progress=True))
    classify = load_classifier(path)

    def measure(samples: Samples) -> Report:
        with busy("compiling and classifying"):
            report = evaluate(
                samples.x,
                samples.cond["label"],
                test_set["x"],
                test_set["label"],
                train_x=train_set["x"],
                train_label=train_set["label"],
                classify=classify,
            )
        return Report(report | {"class_names": list(condition.names)}, format_report(report, condition.names))

    return measure


def _open(source: str, split: str, shape: tuple[int, ...]) -> data.Dataset:
    return data.open_dataset(source, split, size=shape[0], channels=shape[-1])


def _open_held_out(source: str, shape: tuple[int, ...]) -> data.Dataset:
    """The test split, or where there is none, as of ImageNet, that of validation."""
    try:
        return _open(source, "test", shape)
    except ValueError:
        with suppress(ValueError):
            return _open(source, "validation", shape)
        raise


def _real(source: data.Dataset) -> dict[str, np.ndarray]:
    arrays = data.load_arrays(source, min(len(source), MOST_REAL))
    return {"x": data.to_float(arrays["x"]), "label": arrays["label"]}
