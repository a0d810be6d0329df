"""Where images come from: random-access sources, opened by name."""

import dataclasses
import difflib
from importlib import resources
from typing import Any, Protocol

import numpy as np

FORMS = '"fashion_mnist", "tfds:NAME" or "folder:PATH"'


class Source(Protocol):
    """A random-access sequence of {"x": uint8[H, W, C], "label": int}; "label" is absent if there are no classes.

    Attributes:
      shape: (H, W, C).
      num_classes: labels are 0 .. num_classes - 1; 0 if there are none.
      class_names: one for each class; empty if they are not known.
    """

    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A source of images that are in memory.

    Attributes:
      x: uint8[N, H, W, C].
      label: int[N] in [0, num_classes), or None.
      num_classes: 0 without labels.
      class_names: one for each class, or empty.
    """

    x: np.ndarray
    label: np.ndarray | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.x.dtype != np.uint8 or self.x.ndim != 4:
            raise ValueError(f"x must be uint8[N, H, W, C], got {self.x.dtype}{list(self.x.shape)}")
        if (self.label is None) != (self.num_classes == 0):
            raise ValueError(f"labels and num_classes go together, got num_classes={self.num_classes}")
        if self.label is not None and self.label.shape != self.x.shape[:1]:
            raise ValueError(f"{len(self.x)} images need as many labels, got shape {self.label.shape}")
        if self.label is not None and not (0 <= self.label.min() and self.label.max() < self.num_classes):
            raise ValueError(
                f"labels must be in [0, {self.num_classes}), got [{self.label.min()}, {self.label.max()}]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"x": self.x[index]}
        if self.label is not None:
            example["label"] = int(self.label[index])
        return example


def open_source(name: str, split: str = "train") -> Source:
    """Open a data set by name.

    Args:
      name: "fashion_mnist" (embedded: 10,000 training and 2,000 test images, 28x28 grey, 10 classes).
      split: "train" or "test".

    Returns:
      A random-access source.

    Raises:
      ValueError: if the name or the split is not known.
    """
    if name == "fashion_mnist":
        return _fashion_mnist(split)
    hint = difflib.get_close_matches(name, ["fashion_mnist"], n=1)
    raise ValueError(
        f"unknown data set {name!r}: allowed are {FORMS}" + (f"; did you mean {hint[0]!r}?" if hint else "")
    )


def _fashion_mnist(split: str) -> ArraySource:
    if split not in ("train", "test"):
        raise ValueError(f'fashion_mnist has the splits "train" and "test", got {split!r}')
    with (
        resources.files("jaxdiff.data").joinpath("fashion_mnist.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        x, label = arrays[f"{split}_x"], arrays[f"{split}_label"]
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag".split()
    return ArraySource(x[..., None], label, 10, (*names, "Ankle boot"))
