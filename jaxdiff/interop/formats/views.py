"""Tensors of a file in another shape or order; nothing is read before it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Identity", "Rows", "Transposed"]


class Rows:
    """Some rows of a tensor in an order of their own, without the last axes, where those have length one.

    A convolution over one position is a matrix so.

    Args:
        tensor: the tensor.
        rows: indices along its first axis; None: all.
        ndim: axes that are kept; None: all.
    """

    def __init__(self, tensor: Any, rows: np.ndarray | None = None, ndim: int | None = None):
        if 0 in tensor.shape:  # where a side may be of any length
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
    """A matrix, transposed."""

    def __init__(self, tensor: Any):
        self._tensor, self.shape, self.dtype = tensor, tensor.shape[::-1], tensor.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._tensor[tuple(reversed(index))].T


class Identity:
    """The matrix that changes nothing, [size, size], of a type as files name it."""

    def __init__(self, size: int, dtype: str):
        self.shape, self.dtype = (size, size), dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.eye(self.shape[0], dtype=np.float32)[index]
