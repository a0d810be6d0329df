"""Pictures to files: contact sheets, single PNGs, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxdiff.data import to_uint8
from jaxdiff.storage import replacing

_GAP = 2  # pixels between the pictures of a grid


def grid(images, columns: int) -> np.ndarray:
    """Lay pictures out row by row, with white gaps between them.

    Args:
        images: float [N, H, W, C] in [-1, 1] (beyond is clipped), C = 1 (grey) or 3 (RGB), N >= 1.
        columns: pictures in a row, >= 1; cells that the last row lacks stay white.

    Returns:
        uint8 array [rows H + 2 (rows - 1), columns W + 2 (columns - 1), C].

    Raises:
        ValueError: another shape, values that are not finite, or columns below 1.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    pixels = to_pixels(images)
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + _GAP, width + _GAP, channels), 255, np.uint8)
    cells[:count, :height, :width] = pixels
    sheet = cells.reshape(rows, columns, height + _GAP, width + _GAP, channels).swapaxes(1, 2)
    return sheet.reshape(rows * (height + _GAP), columns * (width + _GAP), channels)[:-_GAP, :-_GAP]


def save_png(path, images, columns: int) -> Path:
    """Write pictures as one grid.

    Args:
        path: the file; missing folders are made.
        images: as for `grid`.
        columns: as for `grid`.

    Returns:
        the path written.

    Raises:
        ValueError: as `grid`.
    """
    return write_pixels(Path(path), grid(images, columns))


def save_pngs(folder, images) -> list[Path]:
    """Write each picture to its own file, 00000.png and so on.

    Args:
        folder: made if missing.
        images: as for `grid`.

    Returns:
        the paths written, in the pictures' order.

    Raises:
        ValueError: another shape, or values that are not finite; nothing is written then.
    """
    return [write_pixels(Path(folder) / f"{i:05d}.png", picture) for i, picture in enumerate(to_pixels(images))]


def save_npz(path, **arrays) -> Path:
    """Write arrays, under their names, to one compressed npz file.

    Args:
        path: the file, ending in .npz; missing folders are made.
        **arrays: what to write, numbers or texts, e.g. x=images, label=labels.

    Returns:
        the path written.

    Raises:
        ValueError: another ending, no arrays, or values that are not finite.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"the path must end in .npz, got {path}")
    if not arrays:
        raise ValueError("there are no arrays to write")
    host = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in host.items():
        if value.dtype.kind != "U":
            _check_finite(value, name)
    with replacing(path) as part:
        np.savez_compressed(part, **host)  # type: ignore[arg-type]
    return path


def to_pixels(images) -> np.ndarray:
    """Return uint8 [N, H, W, C], -1 as 0 and 1 as 255."""
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must be [N, H, W, C] with N >= 1 and C = 1 or 3, got shape {images.shape}")
    _check_finite(images, "images")
    return to_uint8(images)


def _check_finite(values: np.ndarray, name: str) -> None:
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"{name} has {bad} of {values.size} values that are not finite")


def write_pixels(path: Path, pixels: np.ndarray) -> Path:
    """Write a picture, uint8 [H, W, C], to a PNG file."""
    from PIL import Image

    with replacing(path) as part:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(part, format="PNG")
    return path
