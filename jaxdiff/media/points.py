"""Points of the plane: a picture of where they come from and where they go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxdiff.media.base import Medium, Samples
from jaxdiff.media.files import save_npz
from jaxdiff.storage import replacing

__all__ = ["points"]

SIDE, SCALE = 800, 150  # pixels of a picture, and pixels of a unit
NOISE, PATH, DATA = (240, 140, 40), (190, 190, 190), (40, 90, 200)


def points(*, preview: int = 2000, paths: int = 60) -> Medium:
    """Points of the plane, [B, 2].

    Args:
        preview: points in a picture.
        paths: how many of them show their path.

    Returns:
        the medium. Its picture shows samples in blue, some of their paths in grey, and where these begin in orange.
    """

    def save(out: Path, samples: Samples) -> None:
        if out.suffix == ".npz":
            save_npz(out, x=samples.x, **samples.numbers())
        else:
            _draw(out, np.asarray(samples.path), paths)

    return Medium((2,), save, (".png", ".npz"), preview=preview, last=preview, path=True)


def _draw(out: Path, path: np.ndarray, paths: int) -> None:
    """Write the picture of a path [steps + 1, N, 2]."""
    from PIL import Image, ImageDraw

    if not np.isfinite(path).all():
        raise ValueError("the points' paths are not finite")
    pixels = SIDE / 2 + SCALE * path * np.asarray([1, -1])
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for i in range(min(paths, path.shape[1])):
        pen.line([tuple(point) for point in pixels[:, i]], fill=PATH)
    for dots, colour, radius in ((pixels[0, :paths], NOISE, 3), (pixels[-1], DATA, 1)):
        for x, y in dots:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    with replacing(out) as part:
        picture.save(part, format="PNG")
