"""Sources of images: random-access sequences, opened by name."""

import dataclasses
import difflib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.captions import METADATA, check_captions
from jaxdiff.data.transforms import fit_array
from jaxdiff.data.twemoji import load_twemoji, pictures_of
from jaxdiff.schema import integer

FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FORMS = (
    '"fashion_mnist", "twemoji", "twemoji:tones", "twemoji64:PACKAGE", "openmoji", "noto", "compositions", '
    '"compositions:core", "compositions:few", "tfds:NAME" or "folder:PATH"'
)


class Examples(Protocol):
    """A random-access sequence of dicts of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Dataset(Examples, Protocol):
    """A random-access sequence of {"x": uint8[H, W, C], "label": int}; no "label" if there are no classes.

    With captions, examples have "captions", too: a tuple of strings, at least one.

    Attributes:
        captions: of each example, or texts of the same words; a set that reads them with the images has no such list,
            and `reads_captions` is True.
        shape: (H, W, C).
        num_classes: labels are 0..num_classes - 1; 0: no labels.
        class_names: one for each class; empty if unknown.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A source of images in memory.

    Attributes:
        x: uint8[N, H, W, C].
        label: int[N] in [0, num_classes), or None.
        num_classes: number of classes, 0 without labels.
        class_names: one for each class, or empty.
        captions: of each image, at least one; None: without captions.
    """

    x: np.ndarray
    label: np.ndarray | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    captions: Sequence[tuple[str, ...]] | None = None

    def __post_init__(self):
        x, label = self.x, self.label
        if x.dtype != np.uint8 or x.ndim != 4:
            raise ValueError(f"x must be uint8[N, H, W, C], got {x.dtype}{list(x.shape)}")
        if (label is None) != (self.num_classes == 0):
            raise ValueError(f"labels and num_classes go together, got num_classes={self.num_classes}")
        if self.captions is not None:
            check_captions(self.captions, [f"image {i}" for i in range(len(x))])
        if label is None:
            return
        if label.shape != x.shape[:1]:
            raise ValueError(f"{len(x)} images need as many labels, got shape {label.shape}")
        if label.size and (label.min() < 0 or label.max() >= self.num_classes):
            raise ValueError(f"labels must be in 0..{self.num_classes - 1}, got {label.min()}..{label.max()}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"x": self.x[index]}
        if self.label is not None:
            example["label"] = int(self.label[index])
        if self.captions is not None:
            example["captions"] = self.captions[index]
        return example


def open_dataset(
    name: str,
    split: str = "train",
    *,
    size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    captions: bool | str = False,
) -> Dataset:
    """Open a data set by name.

    Args:
        name: "fashion_mnist", the embedded subset (28x28 grey, 10 classes, 10,000 training and 2,000 test
            images); "twemoji", the embedded pictures with names (32x32 RGB, 8 categories), "twemoji:tones", those and
            the ones with skin tones, "twemoji64:PACKAGE", "openmoji" or "noto", the same names drawn in 64x64 from
            files that are not embedded, see `twemoji.pictures_of`; "compositions", "compositions:core" or
            "compositions:few", twemoji and pictures made of them, with captions, see `Compositions`; "tfds:NAME", any
            image set of tensorflow-datasets, or "tfds:NAME/CONFIG:1.0.0"; "folder:PATH", images in one subfolder for
            each class, with labels in the order of the sorted names, or directly in PATH, without labels.
        split: "train", "test", or another split of the set; for "tfds:" also a slice, e.g. "train[:90%]". A folder has
            its subfolders with such names as splits (PATH/train/CLASS/...), otherwise only "train".
        size: resize the shorter side to this many pixels and crop the centre square; None: keep the images, which must
            then have one size.
        channels: 1 (grey) or 3 (RGB); None: those of the set.
        data_dir: data folder of tensorflow-datasets; None: its default.
        captions: whether examples have "captions". For a folder they are the lines of PICTURE.txt next to PICTURE.png,
            or "text" in metadata.jsonl, see `captions.of_files`; for "tfds:" they are the only feature of texts, or one
            named "captions", "caption" or "text". A string is another name for "text" or the feature.

    Returns:
        a random-access source. A "tfds:" set that is not prepared has a shape and classes; its length and its images
        raise a ValueError with instructions to prepare the set.

    Raises:
        ValueError: the name, the split, the size or the channels are unknown or impossible, or the folder has no
            images; captions are asked for, and there are none, or none for some image of a folder.
    """
    size = None if size is None else integer("size", size, 1)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels!r}")
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        from jaxdiff.data.folder import FolderSource, find_split

        return FolderSource(find_split(rest, split), size=size, channels=channels, captions=captions)
    if kind == "tfds" and rest:
        from jaxdiff.data.tfds import TfdsSource

        return TfdsSource(rest, split, data_dir=data_dir, size=size, channels=channels, captions=captions)
    if kind == "compositions":
        return _compositions(name, split, size, channels)
    if name in ("twemoji", "twemoji:tones", "openmoji", "noto") or (kind == "twemoji64" and rest):
        return _twemoji(name, split, size, channels, with_captions=bool(captions))
    if name != "fashion_mnist":
        raise ValueError(f"unknown data set {name!r}: allowed are {FORMS}{_hint(kind, rest)}")
    if captions:
        raise ValueError("fashion_mnist has classes, and no captions")
    return _fashion_mnist(split, size, channels)


def has_captions(name: str, split: str = "train", *, data_dir: str | None = None) -> bool:
    """Return whether a data set's pictures have captions, those of "tfds:" in a feature with one of the usual names.

    Args:
        name: as for `open_dataset`.
        split: as for `open_dataset`.
        data_dir: as for `open_dataset`.

    Raises:
        ValueError: a folder or its split does not exist, or tensorflow-datasets has no such set.
    """
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        from jaxdiff.data.folder import find_split, images_in

        folder = find_split(rest, split)
        return (folder / METADATA).is_file() or any(p.with_suffix(".txt").is_file() for p in images_in(folder))
    if kind == "tfds" and rest:
        from jaxdiff.data import tfds

        return tfds.has_captions(rest, data_dir)
    return kind in ("compositions", "noto", "openmoji", "twemoji", "twemoji64")


def class_prompts(prompt: str, class_names: Sequence[str]) -> list[str]:
    """Return the prompt of each class, and the empty prompt at the end.

    Args:
        prompt: a text in which {} stands for the name of the class, e.g. "a photo of a {}"; other braces are kept.
        class_names: one for each class.

    Raises:
        ValueError: there are no names.
    """
    if not class_names:
        raise ValueError("a prompt needs captions or the names of classes, and this data has none")
    return [*(prompt.replace("{}", name) for name in class_names), ""]


def _hint(kind: str, rest: str) -> str:
    alone = ("fashion_mnist", "twemoji", "openmoji", "noto", "compositions")
    near = difflib.get_close_matches(kind.lower(), [*alone, "twemoji64", "tfds", "folder"], n=1)
    if not near:
        return ""
    guess = near[0] if near[0] in alone else f"{near[0]}:{rest or '...'}"
    return f"; did you mean {guess!r}?"


def _fashion_mnist(split: str, size: int | None, channels: int | None) -> ArraySource:
    if split not in ("train", "test"):
        raise ValueError(f'fashion_mnist has the splits "train" and "test", got {split!r}')
    return ArraySource(*_clothes(split, size, channels), len(FASHION_MNIST), FASHION_MNIST)


@lru_cache(maxsize=4)  # to fit 10,000 images takes a second, and a run opens them more than once
def _clothes(split: str, size: int | None, channels: int | None) -> tuple[np.ndarray, np.ndarray]:
    path = resources.files("jaxdiff.data").joinpath("fashion_mnist.npz")
    with path.open("rb") as file, np.load(file) as arrays:
        x, label = arrays[f"{split}_x"][..., None], arrays[f"{split}_label"]
    if size not in (None, 28) or channels == 3:
        x = np.stack([fit_array(image, size, channels) for image in x])
    for array in (x, label):
        array.flags.writeable = False
    return x, label


def _check_train(name: str, split: str) -> None:
    if split != "train":
        raise ValueError(f'{name} has the split "train" alone, got {split!r}: choose --split train')


def _compositions(name: str, split: str, size: int | None, channels: int | None) -> Dataset:
    from jaxdiff.data.compositions import Compositions

    _check_train(name, split)
    if size not in (None, 32) or channels not in (None, 3):
        raise ValueError(f"{name} has the size 32 and 3 channels, got {size}, {channels}")
    return Compositions(subset=name.partition(":")[2] or "all")


def _twemoji(name: str, split: str, size: int | None, channels: int | None, *, with_captions: bool) -> ArraySource:
    _check_train(name, split)
    drawn = load_twemoji(tones=name == "twemoji:tones")
    embedded = name.startswith("twemoji") and not name.startswith("twemoji64")
    x = drawn.x if embedded else pictures_of(name, drawn.codepoint, size or 64)
    if channels == 1 or size not in (None, x.shape[1]):
        x = np.stack([fit_array(image, size, channels) for image in x])
    captions = drawn.captions if with_captions else None
    return ArraySource(x, drawn.category, len(drawn.categories), drawn.categories, captions)
