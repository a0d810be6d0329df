"""Rebuild the embedded Fashion-MNIST subset: `python -m jaxdiff.data.embed FOLDER` (of the idx .gz files)."""

import gzip
import sys
from pathlib import Path

import numpy as np

from jaxdiff.storage import replacing

TRAIN_PER_CLASS, TEST_PER_CLASS = 1000, 200


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped idx file of unsigned bytes.

    Args:
        path: a file with the header: two zero bytes, the type (8 is uint8), the rank, the shape as big-endian int32.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        ValueError: the file is not an idx file of unsigned bytes.
    """
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes (it starts with {raw[:4]!r})")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def first_of_each_class(label: np.ndarray, per_class: int) -> np.ndarray:
    """Return the indices of the first `per_class` examples of every class, in their original order.

    Args:
        label: int[N].
        per_class: number of examples of each class.

    Returns:
        int[num_classes * per_class], increasing.
    """
    return np.sort(np.concatenate([np.flatnonzero(label == c)[:per_class] for c in np.unique(label)]))


def main(folder: str) -> None:
    """Write fashion_mnist.npz next to this file.

    Args:
        folder: folder of the four published .gz files.
    """
    arrays = {}
    for split, stem, per_class in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        x = read_idx(Path(folder) / f"{stem}-images-idx3-ubyte.gz")
        label = read_idx(Path(folder) / f"{stem}-labels-idx1-ubyte.gz")
        keep = first_of_each_class(label, per_class)
        arrays[f"{split}_x"], arrays[f"{split}_label"] = x[keep], label[keep]
    with replacing(Path(__file__).with_name("fashion_mnist.npz")) as partial_path:
        np.savez_compressed(partial_path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
