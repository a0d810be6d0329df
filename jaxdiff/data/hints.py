"""Pairs of an image and a hint, a second image that conditions a network."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jaxdiff.data.npz import read_npz
from jaxdiff.data.skipping import Skipping
from jaxdiff.data.sources import Dataset
from jaxdiff.data.transforms import fit_array


def edges(image: np.ndarray) -> np.ndarray:
    """Return the gradient of an image's brightness as an image.

    Args:
        image: uint8[H, W, C], H and W at least 2.

    Returns:
        uint8[H, W, 3]: twice the norm of the gradient of the channels' mean, by central differences, at most 255.
    """
    down, right = np.gradient(image.mean(-1, dtype=np.float32))
    steep = np.minimum(2 * np.hypot(down, right), 255).round().astype(np.uint8)
    return np.repeat(steep[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Hinted:
    """A source of images with a "hint", uint8[H', W', C'].

    Attributes:
        images: the source.
        hints: uint8[N, H', W', C'], one for each image, in the source's order, which has them all; or a function that
            makes it of the image, uint8[H, W, C].
    """

    images: Dataset
    hints: np.ndarray | Callable[[np.ndarray], np.ndarray] = edges

    def __post_init__(self):
        hints = self.hints
        if callable(hints):
            return
        if hints.dtype != np.uint8 or hints.ndim != 4 or len(hints) != len(self.images):
            raise ValueError(
                f"hints must be uint8[{len(self.images)}, H, W, C], one for each image, "
                f"got {hints.dtype}{list(hints.shape)}"
            )
        if isinstance(self.images, Skipping):
            raise ValueError("a broken picture is replaced by another, whose hint is not at its place: pass a function")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    @property
    def hint_shape(self) -> tuple[int, ...]:
        return (self.hints(np.zeros(self.shape, np.uint8)) if callable(self.hints) else self.hints[0]).shape

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def captions(self) -> Any:
        return getattr(self.images, "captions", None)

    @property
    def reads_captions(self) -> bool:
        return getattr(self.images, "reads_captions", False)

    @property
    def previews(self) -> Any:
        return getattr(self.images, "previews", None)

    def class_hints(self) -> np.ndarray:
        """Return the hint of a random image of each class; zeros if 10 * num_classes random images lack the class.

        Returns:
            uint8[num_classes, H', W', C'], the same in every call.
        """
        hints = np.zeros((self.num_classes, *self.hint_shape), np.uint8)
        for i in np.random.default_rng(0).permutation(len(self))[: 10 * self.num_classes]:
            example = self[int(i)]
            hints[example["label"]] = example["hint"]
        return hints

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.images[index]
        return {**example, "hint": self.hints(example["x"]) if callable(self.hints) else self.hints[index]}


def low_resolution(images: Dataset, size: int) -> Hinted:
    """Add to each image itself at a lower resolution, as `open_dataset` resizes images.

    Args:
        images: square images.
        size: side of the hint in pixels.

    Raises:
        ValueError: the images are not square, or not larger than that.
    """
    height, width = images.shape[:2]
    if height != width or not 1 <= size < height:
        raise ValueError(
            f"a low resolution is from 1 pixel to below that of square images, got {size} of {height} x {width}"
        )
    return Hinted(images, partial(fit_array, size=size, channels=None))


def open_hints(name: str, images: Dataset) -> Hinted:
    """Add hints to the images of a source.

    Args:
        name: "edges", or an .npz file of "hint"; see `Hinted`.
        images: the source.

    Raises:
        ValueError: the file does not exist, has no "hint", or has not one hint for each image.
    """
    if name == "edges":
        return Hinted(images)
    if not name.endswith(".npz"):
        raise ValueError(f'hints are "edges" or an .npz file, got {name!r}')
    arrays = read_npz(name)
    if "hint" not in arrays:
        raise ValueError(f'{name} must hold "hint", got {", ".join(arrays)}')
    return Hinted(images, arrays["hint"])
