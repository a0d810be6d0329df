"""Latents of an autoencoder that is not at hand, shown in false colours."""

from __future__ import annotations

from pathlib import Path

from jaxdiff.media.base import Medium, Samples
from jaxdiff.media.images import save_images

__all__ = ["latents"]


def latents(shape: tuple[int, ...], *, preview: int = 10) -> Medium:
    """Latents, whose first three channels are shown as red, green and blue, or whose first as grey where there are two.

    Args:
        shape: (height, width, channels).
        preview: examples in a preview; the last has twice as many.

    Returns:
        the medium; `images(shape, decode=..., encode=...)` is for latents with their autoencoder.

    Raises:
        ValueError: a shape that is not that of latents.
    """
    if len(shape) != 3:
        raise ValueError(f"latents have a shape (height, width, channels), got {tuple(shape)}")

    def save(out: Path, samples: Samples) -> None:
        shown = samples.x if out.suffix == ".npz" else samples.x[..., : 3 if shape[-1] >= 3 else 1]
        save_images(out, samples._replace(x=shown))

    return Medium(tuple(shape), save, (".png", ".npz", ""), preview=preview)
