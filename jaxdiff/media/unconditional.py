"""Images without classes, which are measured as a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.conditions import Condition
from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.media.images import images
from jaxdiff.metrics import sliced_wasserstein

__all__ = ["unconditional"]


def unconditional(shape: tuple[int, ...], held_out: Callable[[int], np.ndarray]) -> Medium:
    """Images in [-1, 1] that are measured by their distance to images which training never shows.

    Args:
        shape: (height, width, 1 or 3).
        held_out: number -> as many images, [N, *shape] in [-1, 1].

    Returns:
        the medium of `images`. It measures sliced Wasserstein distances (Rabin et al. 2011) of pixels, and of
        differences of neighbours, in which blur and noise show; next to those of held-out images.

    Raises:
        ValueError: a shape that is not that of images.
    """

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        return lambda samples: _measure(samples, held_out(2 * len(samples.x)))

    return replace(images(shape), evaluator=evaluator)


def _measure(samples: Samples, held_out: np.ndarray) -> Report:
    made, (real, other) = np.clip(samples.x, -1, 1), np.split(held_out, 2)
    values: dict[str, Any] = {"count": len(made)}
    lines = [f"{len(made)} images"]
    for name, features in (("pixels", _flat), ("edges", lambda x: _flat(np.diff(x, axis=2)))):
        for of, x in ((name, made), (f"{name}_real", other)):
            values[of] = sliced_wasserstein(features(x), features(real))
        lines.append(f"distance of {name}  {values[name]:.4f}, of held-out images {values[f'{name}_real']:.4f}")
    return Report(values, "\n".join(lines))


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
