"""Images of captions, measured against the pictures that have these captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import data
from jaxdiff.conditions import Condition
from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.media.images import images
from jaxdiff.media.reconstructions import Features, describe_distances, paired_distances

__all__ = ["MOST", "captioned", "representatives"]

MOST = 1024  # pictures among which a sample's nearest is looked for


def captioned(
    pictures: data.Dataset,
    *,
    features: Callable[[], Features] | None,
    missing: str = "",
    preview: int = 20,
) -> Medium:
    """Images in [-1, 1] of captions, for a source of pictures that have captions.

    An evaluation asks for the captions of pictures in turn. It compares the features of each sample with those of its
    picture and of all others: a sample is recognized if the nearest picture has its caption.

    Args:
        pictures: from `data.open_dataset(..., captions=True)`, which knows its captions.
        features: makes the network of the features, when they are measured; None: samples are not measured.
        missing: what to say where there is no such network.
        preview: images in a preview.

    Returns:
        the medium. Its grids have the captions under the images.
    """
    captions = getattr(pictures, "captions", None) or ()
    if not captions:
        raise ValueError("the captions of these pictures are not known beforehand")
    known = representatives(pictures)

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        if features is None:
            raise ValueError(f"samples of captions are measured by features: {missing}")
        return partial(_measure, pictures=pictures, known=known, features=features())

    def prompts(num: int) -> list[str]:
        return [captions[known[i]][0] for i in _asked(num, len(known))]

    base = images(tuple(pictures.shape), preview=preview, captions=True)
    return replace(base, evaluator=evaluator, prompts=prompts)


def representatives(pictures: data.Dataset) -> np.ndarray:
    """Indices of up to `MOST` pictures, spread evenly; where their captions are known, no two of the same first one."""
    captions = getattr(pictures, "captions", None) or [[i] for i in range(len(pictures))]
    first = {each[0]: i for i, each in reversed(list(enumerate(captions)))}
    unique = np.sort(np.array(list(first.values())))
    return unique[_spread(len(unique), min(len(unique), MOST))]


def _spread(total: int, count: int) -> np.ndarray:
    """Indices of `count` of `total`, spread evenly: categories lie next to each other."""
    return np.arange(count) * total // count


def _asked(num: int, known: int) -> np.ndarray:
    """Which of the known pictures each of so many samples is of."""
    return _spread(known, num) if num <= known else np.arange(num) % known


def _measure(samples: Samples, *, pictures: data.Dataset, known: np.ndarray, features: Features) -> Report:
    examples = [example for part in data.read_ahead(pictures, 64, known.tolist()) for example in part]
    real = features(data.to_float(np.stack([example["x"] for example in examples])))
    made = features(np.clip(samples.x, -1, 1))
    asked = _asked(len(made), len(known))
    unit_of = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)  # noqa: E731
    nearest = np.argmax(unit_of(made) @ unit_of(real).T, axis=1)
    captions = [set(example["captions"]) for example in examples]
    right = [bool(captions[i] & captions[j]) for i, j in zip(nearest.tolist(), asked.tolist(), strict=True)]
    values: dict[str, Any] = {"count": len(made), "recognized": float(np.mean(right)), "chance": 1 / len(known)}
    values |= paired_distances(real[asked], made, asked)
    lines = [
        f"{len(made)} samples of the captions of {len(known)} pictures",
        f"recognized       {100 * values['recognized']:7.1f}%, by chance {100 * values['chance']:.2f}%",
        *describe_distances(values),
    ]
    return Report(values, "\n".join(lines))
