"""Tensors of a file in another shape or order, which are read lazily."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Identity", "Rows", "Transposed"]


class Rows:
    """Selected rows of a tensor in a given order, optionally without trailing axes of length one.

    E.g. a convolution of size 1 becomes a matrix.

    Args:
        tensor: the tensor.
        rows: indices along its first axis; None: all.
        ndim: number of axes to keep; None: all.
    """

    def __init__(self, tensor: Any, rows: np.ndarray | None = None, ndim: int | None = None):
        if 0 in tensor.shape:  # the other axes may then have any length
            raise ValueError(f"a tensor of shape {tensor.shape} has no rows")
        self._tensor, self._rows = tensor, np.arange(tensor.shape[0]) if rows is None else rows
        self._dropped = len(tensor.shape) - (ndim or len(tensor.shape))
        kept = tensor.shape[1 : len(tensor.shape) - self._dropped]
        if any(side != 1 for side in tensor.shape[1 + len(kept) :]):
            raise ValueError(f"a tensor of shape {tensor.shape} is no matrix")
        self.shape = (len(self._rows), *kept)
        self.dtype = tensor.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        first, *rest = index or (slice(None),) * len(self.shape)
        rows = self._rows[first]
        if not len(rows):
            return self._tensor[(slice(0, 0), *rest, *(slice(None),) * self._dropped)].reshape(0, *self.shape[1:])
        start, stop = int(rows.min()), int(rows.max()) + 1
        read = self._tensor[(slice(start, stop), *rest, *(slice(None),) * self._dropped)]
        return read.reshape(read.shape[: len(self.shape)])[rows - start]


class Transposed:
    """A transposed matrix."""

    def __init__(self, tensor: Any):
        self._tensor, self.shape, self.dtype = tensor, tensor.shape[::-1], tensor.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._tensor[tuple(reversed(index))].T


class Identity:
    """The identity matrix [size, size], with a dtype as named in files."""

    def __init__(self, size: int, dtype: str):
        self.shape, self.dtype = (size, size), dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.eye(self.shape[0], dtype=np.float32)[index]
