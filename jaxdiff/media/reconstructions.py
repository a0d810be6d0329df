"""Reconstructions next to their originals, measured pair by pair and as a set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.conditions import Condition
from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.media.files import save_npz, save_png, save_pngs
from jaxdiff.metrics import kernel_distance, psnr, ssim

__all__ = ["Features", "describe_distances", "paired_distances", "reconstructions"]

Features = Callable[[np.ndarray], np.ndarray]  # images [N, H, W, C] in [-1, 1] -> [N, D]

COLUMNS = 5  # pairs in a row of a picture
LEAST = 8  # different pictures for a kernel distance


def reconstructions(
    shape: tuple[int, ...], *, features: Callable[[], Features] | None = None, missing: str = "", preview: int = 20
) -> Medium:
    """Images in [-1, 1] that an autoencoder has made of the originals in `Samples.cond["x"]`.

    Args:
        shape: (height, width, 1 or 3).
        features: makes the network of the feature distances, when they are measured; None: only pixels are compared.
        missing: what to say where there is no such network.
        preview: pairs in a preview; the last has twice as many.

    Returns:
        the medium. Its pictures are pairs, the original on the left.

    Raises:
        ValueError: a shape that is not that of images.
    """
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"images have a shape (height, width, 1 or 3), got {tuple(shape)}")

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        network = None if features is None else features()
        return lambda samples: _measure(samples, network, missing)

    return Medium(tuple(shape), _save, (".png", ".npz", ""), preview=preview, evaluator=evaluator)


def _save(out: Path, samples: Samples) -> None:
    original = samples.cond["x"]
    if out.suffix == ".npz":
        save_npz(out, x=samples.x, original=original)
        return
    pairs = np.concatenate([original, samples.x], axis=2)
    if out.suffix == ".png":
        save_png(out, pairs, COLUMNS)
    else:
        save_pngs(out, pairs)


def _measure(samples: Samples, features: Features | None, missing: str) -> Report:
    original, made = samples.cond["x"], np.clip(samples.x, -1, 1)
    decibels = float(np.mean(psnr(original, made)))  # infinite if a picture is exact, which JSON cannot hold
    values: dict[str, Any] = {
        "count": len(made),
        "psnr": decibels if np.isfinite(decibels) else None,
        "ssim": float(np.mean(ssim(original, made))),
    }
    lines = [
        f"{len(made)} reconstructions",
        f"PSNR             {decibels:8.2f} dB",
        f"SSIM             {values['ssim']:8.4f}",
    ]
    if features is None:
        return Report(values, "\n".join([*lines, missing] if missing else lines))
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(picture.tobytes(), len(seen)) for picture in original]
    values |= paired_distances(features(original), features(made), np.array(numbers))
    lines += describe_distances(values)
    return Report(values, "\n".join(lines))


def paired_distances(original: np.ndarray, made: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
    """Cosine distances of pairs, and kernel distances of two halves: of dependent samples these would be biased.

    Args:
        original: features [N, D].
        made: features of what belongs to each, [N, D].
        numbers: int [N], equal for originals that are the same picture, of which the kernel distances take the first.

    Returns:
        the distances by name; without kernel distances where there are fewer than eight different pictures.
    """
    first = np.sort(np.unique(numbers, return_index=True)[1])
    unit_of = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)  # noqa: E731
    u, v = unit_of(original), unit_of(made)
    half, blocks = len(first) // 2, min(10, len(first) // 4)
    # The scale of a hidden layer is arbitrary, but the cubic kernel depends on it.
    scale = np.sqrt(np.mean(np.square(original, dtype=np.float64)))
    distances = {
        "feature_distance": 1 - (u * v).sum(1).mean(),
        "feature_distance_other": 1 - (u * np.roll(u, 1, 0)).sum(1).mean(),
    }
    for name, sample in (("kernel_distance", made), ("kernel_distance_real", original)) if len(first) >= LEAST else ():
        halves = sample[first[:half]] / scale, original[first[half:]] / scale
        value, error = kernel_distance(*halves, blocks=blocks)
        distances |= {name: value, f"{name}_error": error}
    return {name: float(value) for name, value in distances.items()}


def describe_distances(values: dict[str, Any]) -> list[str]:
    """Describe the results of `paired_distances` in lines for a person."""
    lines = [
        f"feature distance {values['feature_distance']:8.4f}, "
        f"of different pictures {values['feature_distance_other']:.4f}"
    ]
    if "kernel_distance" not in values:
        return [*lines, f"no kernel distance, which needs {LEAST} different pictures"]
    return [
        *lines,
        f"kernel distance  {values['kernel_distance']:8.4f} +- {values['kernel_distance_error']:.4f}, "
        f"of originals {values['kernel_distance_real']:.4f} +- {values['kernel_distance_real_error']:.4f}",
        "The kernel distance is that of half of what was made, or of its originals, to the other half's originals.",
    ]
