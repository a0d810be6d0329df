"""Files that steer pictures: hints, image prompts and faces, or what hints are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax import Array

from jaxdiff.conditions import hints
from jaxdiff.data import edges, read_image, to_float
from jaxdiff.data.npz import read_npy, read_npz
from jaxdiff.experiment import UserError
from jaxdiff.messages import listed
from jaxdiff.options import absolute
from jaxdiff.schema import number
from jaxdiff.storage import read_json
from jaxdiff.text_to_image.control import HintShape

__all__ = ["Hint", "HintFile", "check_hint", "make_hint", "parse_hint"]

# What makes a hint [1, H, W, 3] of a picture [1, H, W, 3] in [-1, 1].
MAKERS: dict[str, Callable[[Array], Array]] = {
    "canny": hints.canny, "low": hints.low_resolution, "colors": hints.colors,
}  # fmt: skip
EDGES, DEPTH, POSE = "edges", "depth", "pose"  # made otherwise
SCALE = number(-1000, 1000)  # of a control; 0 is off
FACE = "embedding"  # name of the array of a face
KINDS = EDGES, *MAKERS, DEPTH, POSE


class Hint(NamedTuple):
    """What a picture of a history follows.

    Attributes:
        picture: FILE, or KIND:FILE for what is made of it, see `HintFile`.
        scale: of its control, from -1,000 to 1,000; 0 is off.
        digest: 128-bit XXH3 of the file's bytes, in hexadecimal digits.
    """

    picture: str
    scale: float
    digest: str

    def read(self, shape: HintShape, scale: int = 1) -> Any:
        """Return the hint; see `HintFile.read`.

        Raises:
            UserError: the file is another one by now.
            ValueError: as by `HintFile`.
        """
        held = parse_hint(self.picture)
        if _digest(held.file) != self.digest:
            raise UserError(f"{held.file} has changed since it became the hint of a picture")
        return held.read(shape, scale)


def make_hint(text: str, scale: float) -> Hint:
    """Make a hint of a file as it is now.

    Args:
        text: FILE, or KIND:FILE for what is made of it, see `HintFile`.
        scale: of its control; 0 is off.

    Raises:
        ValueError: as by `HintFile`, or no finite scale.
    """
    held = parse_hint(text)
    kind = "" if held.kind is None else f"{held.kind}:"
    return check_hint(Hint(f"{kind}{absolute(str(held.file))}", scale, _digest(held.file)))


def check_hint(hint: Hint) -> Hint:
    """Return a hint with a float as its scale.

    Raises:
        ValueError: the scale is no number from -1000 to 1000.
    """
    return hint._replace(scale=float(SCALE.check("a control's scale", hint.scale)))


def _digest(file: Path) -> str:
    return xxhash.xxh3_128(file.read_bytes()).hexdigest()


class HintFile:
    """A file whose picture is a hint, or of which a hint is made; or the embedding of a face, or that and a picture."""

    def __init__(self, file: Path, kind: str | None = None):
        """Name a file.

        Args:
            file: a picture; of depth an .npz file of "depth", float [H, W], the distances; of a pose OpenPose's JSON
                of 18 joints of each of "people", in pixels of the hint or of "canvas_width" x "canvas_height"; of a
                face an .npz file of "embedding", float [D], or an .npy file; of a face with its picture an .npz file
                that has also "picture", [H, W, 3], bytes or floats in [0, 1], and for FaceID Plus v2 "shortcut", a
                number.
            kind: edges, canny, low, colors, depth or pose; None: the picture is the hint.

        Raises:
            ValueError: there is no such file, or no such kind.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"hints are made by {listed(KINDS)}, got {kind!r}")
        if not file.is_file():
            raise ValueError(f"{file} does not exist")
        self.file, self.kind = file, kind

    def read(self, shape: HintShape, scale: int = 1) -> Any:
        """Return the hint, float32 [height, width, channels] in [0, 1], or the embedding of a face, float32 [D].

        Args:
            shape: (height, width, 3), or 1 for the channels' mean; other pictures are scaled to cover it and
                cropped. None: the picture's own size, and 3. (D,): of an embedding. {"embedding": (D,), "picture":
                None}: a dict of these, and of "shortcut" where the file has one.
            scale: by how much the hint has grown; distances, and the joints of a pose without a canvas, may be those of
                the first.

        Raises:
            ValueError: the file holds none, or there are other channels; it is no embedding of that length.
        """
        if isinstance(shape, Mapping):
            return self._face(*(shape[FACE] or ()))
        if shape is not None and len(shape) == 1:
            return self._embedding(shape[0])
        channels = 3 if shape is None else shape[-1]
        if channels not in (1, 3):
            raise ValueError(f"a picture has 3 channels or their mean, and hints of {channels} are asked for")
        hint = self._read(None if shape is None else (shape[0], shape[1]), scale)
        return hint if channels == 3 else hint.mean(-1, keepdims=True)

    def _read(self, size: tuple[int, int] | None, scale: int) -> np.ndarray:
        if self.kind == DEPTH:
            return self._depth(size, scale)
        if self.kind == POSE:
            if size is None:
                raise ValueError("a pose is drawn in pictures of one size, and this control's have any")
            return np.asarray(jax.jit(hints.pose, static_argnums=1)(_people(self.file, size, scale)[None], size)[0])
        if self.file.suffix in (".npy", ".npz"):
            raise ValueError(
                f"{self.file} must be a picture: of arrays depth:FILE.npz is one, and a face's embedding none"
            )
        picture = read_image(self.file, size=size, channels=3)
        if self.kind in (None, EDGES):
            picture = edges(picture) if self.kind == EDGES else picture
            return picture.astype(np.float32) / 255
        return np.asarray(jax.jit(MAKERS[self.kind])(to_float(picture)[None])[0])

    def _depth(self, size: tuple[int, int] | None, scale: int) -> np.ndarray:
        distance = read_npz(self.file).get(DEPTH, np.zeros(0))
        sizes = [distance.shape] if size is None else [size, (size[0] // scale, size[1] // scale)]
        if distance.ndim != 2 or distance.shape not in sizes or not np.all(distance > 0):
            raise ValueError(f'{self.file} must hold "depth", positive numbers of shape {size or "[H, W]"}')
        grown = jax.image.resize(jnp.asarray(distance, jnp.float32), size or distance.shape, "linear")
        return np.asarray(hints.depth(grown[None])[0])

    def _face(self, features: int) -> dict[str, np.ndarray]:
        if self.kind is not None or self.file.suffix != ".npz":
            raise ValueError(
                f'an adapter of faces and their pictures takes an .npz file of "{FACE}" and "picture", '
                f"got {self.kind or self.file}"
            )
        held = read_npz(self.file)
        picture, shortcut = held.get("picture", np.zeros(0)), held.get("shortcut", np.ones(()))
        if picture.dtype == np.uint8:
            picture = picture.astype(np.float32) / 255
        floats = np.issubdtype(picture.dtype, np.floating) and np.all((picture >= 0) & (picture <= 1))
        if picture.ndim != 3 or picture.shape[-1] != 3 or not floats or shortcut.size != 1 or not np.isfinite(shortcut):
            raise ValueError(
                f'{self.file} must hold "picture", [H, W, 3], bytes or floats in [0, 1], and maybe "shortcut", a number'
            )
        face = {FACE: self._embedding(features), "picture": picture.astype(np.float32)}
        return face | ({"shortcut": shortcut.reshape(()).astype(np.float32)} if "shortcut" in held else {})

    def _embedding(self, features: int) -> np.ndarray:
        wanted = f'{features} numbers: an .npy file, or an .npz file of "{FACE}"'
        if self.kind is not None or self.file.suffix not in (".npy", ".npz"):
            raise ValueError(f"an adapter of faces takes the embedding of one, {wanted}; got {self.kind or self.file}")
        held = read_npy(self.file) if self.file.suffix == ".npy" else read_npz(self.file).get(FACE)
        found = None if held is None else held.squeeze()
        real = found is not None and np.issubdtype(found.dtype, np.floating) and np.isfinite(found).all()
        if found is None or not real or found.shape != (features,):
            got = f"{held.dtype}, {held.shape}" if held is not None else f'no "{FACE}"'
            raise ValueError(f"{self.file} must hold the embedding of a face, {wanted}; got {got}")
        return found.astype(np.float32)


def _people(file: Path, size: tuple[int, int], scale: int) -> np.ndarray:
    """The joints in a file of OpenPose, float32 [P, 18, 3], in pixels of a picture of this size."""
    fields = read_json(file)
    try:
        people = np.array([each["pose_keypoints_2d"] for each in fields["people"]], np.float32).reshape(-1, 18, 3)
        height, width = (
            float(fields.get(f"canvas_{side}", pixels / scale))
            for side, pixels in zip(("height", "width"), size, strict=True)
        )
        valid = bool(np.isfinite(people).all()) and min(width, height) > 0
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f'{file} must hold "people", each with 18 times x, y and confidence in "pose_keypoints_2d", and no canvas '
            "without a size"
        )
    return people * np.array([size[1] / width, size[0] / height, 1], np.float32)


def parse_hint(text: str) -> HintFile:
    """Read an option: a picture's file, or KIND:FILE.

    Raises:
        ValueError: as by `HintFile`.
    """
    kind, colon, file = text.partition(":")
    return HintFile(Path(file), kind) if colon and not Path(text).exists() else HintFile(Path(text))
