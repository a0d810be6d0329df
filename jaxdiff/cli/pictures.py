"""Pictures that commands are given, as a run takes them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.experiment import Experiment

# Share of a mask's pixels that may be neither black nor white, as at the edges of what was painted.
MOST_GREY = 0.25


def read_picture(file: Path, shape: tuple[int, ...], *, fit: bool) -> np.ndarray:
    """Read a picture of a shape, or one that is brought to it.

    Args:
        file: of any type that Pillow reads.
        shape: (height, width, 1 or 3).
        fit: scale it to cover the size, crop the centre and convert the colours.

    Returns:
        uint8, of the shape.

    Raises:
        ValueError: the picture has another size or colours, and is not fitted; as by `data.read_image`.
    """
    if fit:
        return data.read_image(file, size=(shape[0], shape[1]), channels=shape[-1])
    x = data.read_image(file)
    found = described(x.shape)
    if x.shape[-1] == 1 and shape[-1] == 3:
        x = np.repeat(x, 3, axis=-1)
    if x.shape != shape:
        raise ValueError(
            f"{file} is {found}, and the run takes {described(shape)}: --fit scales it to cover that, "
            "crops the centre and converts its colours"
        )
    return x


def read_mask(file: Path, size: tuple[int, int], *, fit: bool) -> np.ndarray:
    """Read a mask, black and white in any colours: True where it is rather white.

    Args:
        file: of any type that Pillow reads.
        size: (height, width).
        fit: scale it to cover the size, and crop the centre.

    Returns:
        bool, of the size.

    Raises:
        ValueError: the mask has another size, and is not fitted, or is mostly neither black nor white; as by
            `data.read_image`.
    """
    x = data.read_image(file, size=size if fit else None, channels=1)[..., 0]
    if x.shape != size:
        (height, width), (high, wide) = x.shape, size
        raise ValueError(
            f"the mask {file} is {width} x {height} pixels, and its picture {wide} x {high}: --fit scales both"
        )
    grey = np.mean((x >= 64) & (x < 192))
    if grey > MOST_GREY:
        raise ValueError(f"the mask {file} is grey in {grey:.0%} of its pixels: a mask is black and white")
    return x >= 128


def drawn_shape(experiment: Experiment) -> tuple[int, ...]:
    """Return the shape of what a run draws, decoded."""
    params = experiment.model.merge_frozen(jax.eval_shape(experiment.model.init, jax.random.key(0)))
    x = jax.ShapeDtypeStruct((1, *experiment.medium.shape), np.float32)
    return jax.eval_shape(experiment.medium.decode, params, x).shape[1:]


def described(shape: tuple[int, ...]) -> str:
    """Return a picture's shape in words."""
    if len(shape) != 3:
        return f"examples of {list(shape)} numbers"
    height, width, channels = shape
    return f"{width} x {height} pixels in {'grey' if channels == 1 else 'colour'}"
