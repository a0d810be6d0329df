"""Pictures that steer others: hints and image prompts from files, or made of a file's picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.cli.pictures import read_picture
from jaxdiff.conditions import hints
from jaxdiff.data import read_image, to_float
from jaxdiff.data.npz import read_npz
from jaxdiff.messages import listed

__all__ = ["HintFile", "parse_hint"]

# What makes a hint [1, H, W, 3] of a picture [1, H, W, 3] in [-1, 1].
MAKERS: dict[str, Callable[[Array], Array]] = {
    "edges": hints.edges, "canny": hints.canny, "low": hints.low_resolution, "colors": hints.colors,
}  # fmt: skip
DEPTH = "depth"


class HintFile:
    """A file whose picture is a hint, or of which a hint is made."""

    def __init__(self, file: Path, kind: str | None = None):
        """Name a file.

        Args:
            file: a picture; of depth an .npz file of "depth", float [H, W], the distances.
            kind: edges, canny, low, colors or depth; None: the picture is the hint.

        Raises:
            ValueError: there is no such file, or no such kind.
        """
        if kind is not None and kind not in (*MAKERS, DEPTH):
            raise ValueError(f"hints are made by {listed([*MAKERS, DEPTH])}, got {kind!r}")
        if not file.is_file():
            raise ValueError(f"{file} does not exist")
        self.file, self.kind = file, kind

    def read(self, shape: tuple[int, ...] | None) -> np.ndarray:
        """Return the hint, float32 [height, width, channels] in [0, 1].

        Args:
            shape: (height, width, 3), or 1 for the channels' mean; other pictures are cropped to a square and scaled
                where it is one. None: the picture's own size, and 3.

        Raises:
            ValueError: the picture has another size, the file holds none, or there are other channels.
        """
        channels = 3 if shape is None else shape[-1]
        if channels not in (1, 3):
            raise ValueError(f"a picture has 3 channels or their mean, and hints of {channels} are asked for")
        hint = self._read(None if shape is None else (shape[0], shape[1]))
        return hint if channels == 3 else hint.mean(-1, keepdims=True)

    def _read(self, size: tuple[int, int] | None) -> np.ndarray:
        if self.kind == DEPTH:
            distance = read_npz(self.file).get(DEPTH, np.zeros(0))
            if distance.ndim != 2 or distance.shape != (size or distance.shape) or not np.all(distance > 0):
                raise ValueError(f'{self.file} must hold "depth", positive numbers of shape {size or "[H, W]"}')
            return np.asarray(hints.depth(jnp.asarray(distance[None], jnp.float32))[0])
        if size is None:
            picture = read_image(self.file, channels=3)
        else:
            picture = read_picture(self.file, (*size, 3), fit=size[0] == size[1])
        if self.kind is None:
            return picture.astype(np.float32) / 255
        return np.asarray(jax.jit(MAKERS[self.kind])(to_float(picture)[None])[0])


def parse_hint(text: str) -> HintFile:
    """Read an option: a picture's file, or KIND:FILE.

    Raises:
        ValueError: as by `HintFile`.
    """
    kind, colon, file = text.partition(":")
    return HintFile(Path(file), kind) if colon and not Path(text).exists() else HintFile(Path(text))
