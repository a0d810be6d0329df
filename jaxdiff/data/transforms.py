"""Transforms of stored images to arrays of one shape, and of bytes to floats in [-1, 1] and back."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from PIL.Image import Image

GREY_MODES = ("1", "L", "LA")
RGB_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def to_float(x: ArrayLike) -> np.ndarray:
    """Convert bytes to floats: 0 to -1, 255 to 1.

    Args:
        x: uint8, any shape.

    Returns:
        float32, same shape, in [-1, 1].

    Raises:
        ValueError: x is not uint8.
    """
    x = np.asarray(x)
    if x.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 in [0, 255], got {x.dtype}")
    # Divide instead of multiplying by the rounded reciprocal: 255 must become exactly 1.
    out = np.divide(x, 127.5, dtype=np.float32)
    out -= np.float32(1)
    return out


def to_uint8(x: ArrayLike) -> np.ndarray:
    """Convert floats to the nearest bytes, clipped; the exact inverse of `to_float`.

    Args:
        x: floating-point array (numpy or JAX, bfloat16 included), any shape; -1 is black, 1 is white.

    Returns:
        uint8, same shape.

    Raises:
        ValueError: x is an integer array, or holds NaN (infinities are clipped).
    """
    x = np.asarray(x)
    if x.dtype.kind in "iub":
        raise ValueError(f"to_uint8 takes floats in [-1, 1], got {x.dtype}")
    x = x.astype(np.float32)
    if np.isnan(x).any():
        raise ValueError(f"cannot turn NaN into pixels: {np.isnan(x).sum()} of {x.size} values are NaN")
    return np.rint((np.clip(x, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def flip_some(x: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Mirror some images of a batch left to right.

    Args:
        x: [B, H, W, C].
        flipped: bool[B].

    Returns:
        like x.
    """
    return np.where(flipped[:, None, None, None], x[:, :, ::-1], x)


def fit_image(image: "Image", size: int | tuple[int, int] | None, channels: int) -> np.ndarray:
    """Convert an image to an array: upright, on a white background, resized and cropped.

    Args:
        image: a Pillow image, grey, RGB, CMYK or with a palette, 8 bits per channel; an animation's current frame.
        size: side in pixels of the centre square that is kept, or (height, width) of the centre, after scaling to
            cover it by antialiased bicubic interpolation; None keeps the image's own size.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8[H, W, channels].

    Raises:
        ValueError: the image has another mode.
    """
    from PIL import Image, ImageOps

    if image.mode not in GREY_MODES + RGB_MODES:
        raise ValueError(
            f"images must be grey, RGB, CMYK or of a palette, of 8 bits a channel, got mode {image.mode!r}"
        )
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        height, width = size if isinstance(size, tuple) else (size, size)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels)


def fit_array(x: np.ndarray, size: int | None, channels: int | None) -> np.ndarray:
    """Apply `fit_image` to an array.

    Args:
        x: uint8[H, W, C], C = 1 or 3.
        size: as in `fit_image`.
        channels: 1, 3; None: those of x.

    Returns:
        uint8[H', W', C'].
    """
    channels = channels or x.shape[-1]
    if size in (None, x.shape[0]) and x.shape[0] == x.shape[1] and channels == x.shape[-1]:
        return x
    from PIL import Image

    return fit_image(Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x), size, channels)
