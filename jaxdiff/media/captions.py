"""Grids of pictures with what was asked for under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.media.files import to_pixels, write_pixels

__all__ = ["save_captioned"]

WIDTH = 112  # pixels, the least width of a picture: a few words fit under it
EDGE = 4  # pixels around a picture, which a frame fills
LINES = 4  # of a caption
FRAME, PAPER, INK = (245, 180, 110), (255, 255, 255), (40, 40, 40)


def save_captioned(
    path: Path, images: Any, captions: Sequence[str], columns: int, *, framed: Sequence[bool] | np.ndarray | None = None
) -> Path:
    """Write pictures as one grid, each with its caption; small ones are enlarged.

    Args:
        path: the file; missing folders are made.
        images: float [N, H, W, C] in [-1, 1] (beyond is clipped), C = 1 (grey) or 3 (RGB), N >= 1.
        captions: one for each.
        columns: pictures in a row, >= 1.
        framed: which of them have a frame, bool [N]; None: none.

    Returns:
        the path written.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels = to_pixels(images)
    pixels = pixels.repeat(-(-WIDTH // pixels.shape[2]), axis=1).repeat(-(-WIDTH // pixels.shape[2]), axis=2)
    count, height, width, _ = pixels.shape
    font = ImageFont.load_default()
    texts = [_wrapped(caption, width, font) for caption in captions]
    line = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else 11
    cell = width + 2 * EDGE, height + 2 * EDGE + line * max(map(len, texts)) + EDGE
    columns = min(columns, count)
    sheet = Image.new("RGB", (columns * cell[0], -(-count // columns) * cell[1]), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, lines in enumerate(texts):
        left, top = (i % columns) * cell[0], (i // columns) * cell[1]
        if framed is not None and framed[i]:
            pen.rectangle((left, top, left + width + 2 * EDGE - 1, top + height + 2 * EDGE - 1), fill=FRAME)
        picture = Image.fromarray(np.broadcast_to(pixels[i], (height, width, 3)).copy())
        sheet.paste(picture, (left + EDGE, top + EDGE))
        for number, part in enumerate(lines):
            pen.text((left + EDGE, top + height + 2 * EDGE + number * line), part, fill=INK, font=font)
    return write_pixels(path, np.asarray(sheet))


def _wrapped(caption: str, width: int, font: Any) -> list[str]:
    """Split a caption into lines of at most a width; what is too long ends with dots."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
    return lines
