"""Pictures that commands are given, as a run takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxdiff import data


def read_picture(file: Path, shape: tuple[int, ...], *, fit: bool) -> np.ndarray:
    """Read a picture of a shape, or one that is brought to it.

    Args:
        file: of any type that Pillow reads.
        shape: (height, width, 1 or 3).
        fit: scale the shorter side, crop the centre square and convert the colours.

    Returns:
        uint8, of the shape.

    Raises:
        ValueError: the picture has another size or colours, and is not fitted; as by `data.read_image`.
    """
    if fit:
        return data.read_image(file, size=shape[0], channels=shape[-1])
    x = data.read_image(file)
    if x.shape[-1] == 1 and shape[-1] == 3:
        x = np.repeat(x, 3, axis=-1)
    if x.shape != shape:
        raise ValueError(
            f"{file} is {described(x.shape)}, and the run takes {described(shape)}: --fit scales the shorter side, "
            "crops the centre square and converts its colours"
        )
    return x


def described(shape: tuple[int, ...]) -> str:
    """Return a picture's shape in words."""
    height, width, channels = shape
    return f"{width} x {height} pixels in {'grey' if channels == 1 else 'colour'}"
