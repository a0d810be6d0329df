"""Between the bytes of stored images and the floats in [-1, 1] that are diffused."""

import numpy as np
from numpy.typing import ArrayLike


def to_float(x: ArrayLike) -> np.ndarray:
    """Bytes to floats: 0 becomes -1, 255 becomes 1.

    Args:
      x: uint8, any shape.

    Returns:
      float32, same shape, in [-1, 1].

    Raises:
      ValueError: if x is not uint8.
    """
    x = np.asarray(x)
    if x.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 in [0, 255], got {x.dtype}")
    # A division, not a product with the rounded reciprocal: 255 must become exactly 1.
    out = np.divide(x, 127.5, dtype=np.float32)
    out -= np.float32(1)
    return out


def to_uint8(x: ArrayLike) -> np.ndarray:
    """Floats to the nearest bytes, clipped: the exact inverse of `to_float`.

    Args:
      x: floating (numpy or JAX array, bfloat16 included), any shape; -1 is black, 1 is white.

    Returns:
      uint8, same shape.

    Raises:
      ValueError: if x is an integer array, or holds NaN (infinities are clipped).
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
      Like x.
    """
    return np.where(flipped[:, None, None, None], x[:, :, ::-1], x)
