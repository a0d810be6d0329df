"""Images in a folder, one subfolder for each class."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxdiff.data.captions import of_files
from jaxdiff.data.transforms import GREY_MODES, fit_image
from jaxdiff.messages import listed

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "valid", "validation", "test")
# Number of files whose headers decide whether a folder is grey or RGB.
PROBES = 32
T = TypeVar("T")


class FolderSource:
    """The images of a folder; files are listed once, in sorted order, and read on access."""

    def __init__(
        self, path: Path, *, size: int | None = None, channels: int | None = None, captions: bool | str = False
    ):
        """List the files.

        Args:
            path: a folder with one subfolder for each class (images at any depth below it), or with images directly.
                Links are followed. Hidden files and folders, whose names begin with a dot, are ignored at any depth.
                Only the first frame of an animation is read.
            size: side of the square images; None: all must have the size of the first that can be read.
            channels: 1, 3, or None: grey if a sample of the files is grey throughout, otherwise RGB.
            captions: whether examples have captions, see `captions.of_files`; a string is their key in metadata.jsonl.

        Raises:
            ValueError: there are no images, a class is empty, images lie both inside and outside subfolders, an image
                has no caption, or without size or channels, no file of the sample can be read, or sizes differ in it.
        """
        folders = subfolders(path)
        loose = [str(p) for p in sorted(path.iterdir()) if _is_image(p)]
        by_class = [[str(p) for p in sorted(images_in(folder))] for folder in folders]
        if loose and any(by_class):
            raise ValueError(
                f"{path} holds images both directly and in subfolders: move all of them into one subfolder "
                "for each class, or none"
            )
        if not loose and not any(by_class):
            raise ValueError(f"no images in {path}: looked for {', '.join(SUFFIXES)}, there and in subfolders")
        empty = [p.name for p, files in zip(folders, by_class, strict=True) if not files]
        if empty and not loose:
            raise ValueError(f"classes without images in {path}: {listed(empty)}")

        self.files = loose or [file for files in by_class for file in files]
        self.class_names = () if loose else tuple(p.name for p in folders)
        self.num_classes = len(self.class_names)
        self._labels = [] if loose else [label for label, files in enumerate(by_class) for _ in files]
        self.captions = of_files(path, self.files, "text" if captions is True else captions) if captions else None
        self._size, self._asked = size, channels
        self._channels = channels or (1 if all(mode in GREY_MODES for mode in self._sample(_mode)) else 3)
        self.shape = (size, size, self._channels) if size else self._common_shape(path)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        x = self._read(file)
        if x.shape != self.shape:
            raise ValueError(
                f"{file} has shape {x.shape}, the first image {self.shape}: pass size= (--size) for squares"
            )
        example: dict[str, Any] = {"x": x}
        if self._labels:
            example["label"] = self._labels[index]
        if self.captions is not None:
            example["captions"] = self.captions[index]
        return example

    def _common_shape(self, path: Path) -> tuple[int, ...]:
        shapes = list(dict.fromkeys(x.shape for x in self._sample(self._read)))
        if len(shapes) > 1:
            first, other = (f"{width} x {height}" for height, width, _ in shapes[:2])
            raise ValueError(f"images of {first} and of {other} pixels lie in {path}: pass size= (--size) for squares")
        return shapes[0]

    def _sample(self, read: Callable[[str], T]) -> Iterator[T]:
        """Yield what is read of a sample of the files; broken ones are passed over, unless all are."""
        errors, files = [], self.files[:: max(1, len(self.files) // PROBES)]
        for file in files:
            try:
                yield read(file)
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(files):
            raise errors[0]

    def _read(self, file: str) -> np.ndarray:
        with _opened(file) as image:
            if self._asked is None and self._channels == 1 and image.mode not in GREY_MODES:
                raise ValueError("is in colour, in a folder that looked grey: pass channels=3 or 1")
            return fit_image(image, self._size, self._channels)


def read_image(
    file: str | Path, *, size: int | tuple[int, int] | None = None, channels: int | None = None
) -> np.ndarray:
    """Read one picture.

    Args:
        file: of a type that Pillow reads; of an animation the first frame.
        size: as in `fit_image`; None keeps the picture's own size.
        channels: 1 (grey) or 3 (RGB); None: as the picture is.

    Returns:
        uint8[H, W, channels].

    Raises:
        ValueError: it is missing or broken, has more than 8 bits per channel, or is too large.
    """
    with _opened(str(file)) as image:
        return fit_image(image, size, channels or (1 if image.mode in GREY_MODES else 3))


def find_split(path: str, split: str) -> Path:
    """Return the folder of one split.

    Args:
        path: a folder; "~" is the home directory. Its subfolders are splits if all of their names are names of splits.
        split: name of the split; a folder without splits is "train".

    Returns:
        the folder of the split's classes or images.

    Raises:
        ValueError: the folder or the split does not exist.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    names = [p.name for p in subfolders(folder)]
    if not names or not set(names) <= set(SPLITS):
        names, inside = ["train"], folder
    else:
        inside = folder / split
    if split not in names:
        where = " and ".join(f"{folder}/{name}" for name in ("train", split))
        got = f"{folder} has the splits {', '.join(names)}, got {split!r}"
        choose = "choose one of them (by --split, where the command has it)"
        raise ValueError(f"{got}: {choose}, or make the folders {where}")
    return inside


def subfolders(path: Path) -> list[Path]:
    """Return the folders in a folder, links to folders included, sorted by name; hidden ones are ignored."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the images at any depth; links to `above`, the folders on the path, are not followed."""
    here = folder.resolve()
    if here in above:
        return
    yield from (p for p in folder.iterdir() if _is_image(p))
    for below in subfolders(folder):
        yield from images_in(below, (*above, here))


def _is_image(path: Path) -> bool:
    # A broken link counts as an image: reading it raises the error.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _mode(file: str) -> str:
    with _opened(file) as image:
        return image.mode


@contextlib.contextmanager
def _opened(file: str) -> Iterator["Image"]:
    """Open an image; errors name its file."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            # Pillow only warns for up to twice as many.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"Image size ({image.width} x {image.height}) exceeds {Image.MAX_IMAGE_PIXELS} pixels")
            yield image
    # Decoders raise many types for broken files, and Pillow another one for images that are too large.
    except Exception as error:
        raise ValueError(f"cannot read the image {file}: {error}") from error
