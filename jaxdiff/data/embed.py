"""Rebuild the embedded data, from the published files: `python -m jaxdiff.data.embed fashion_mnist|twemoji FOLDER`.

For fashion_mnist, FOLDER holds the four idx .gz files. For twemoji it is the unpacked npm package
emoji-datasource-twitter 16.0.0 (`npm pack emoji-datasource-twitter@16.0.0`, then `tar xzf`).
"""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.twemoji import TONES
from jaxdiff.storage import replacing

TRAIN_PER_CLASS, TEST_PER_CLASS = 1000, 200
SIDE = 32
# Pictures whose mean squared difference is lower, in [-1, 1], on white and on black, are one with several captions.
SAME = 0.005
# Keys of skin tones, in the order of `TONES`; pictures of two people of different tones have longer keys.
TONE_KEYS = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
# Characters' names call filled shapes black and outlined ones white, and number sizes; these say what is seen.
NAMES = {
    "2764-FE0F": ("heart", "red heart"),
    "1F4D5": ("book", "closed book"),
    "1F4D6": ("open book",),
    "1F534": ("circle", "red circle"),
    "1F7E5": ("square", "red square"),
    "1F536": ("diamond", "orange diamond"),
    "1F53A": ("triangle", "red triangle"),
    "2639-FE0F": ("frowning face",),
    "1F626": ("frowning face with open mouth",),
    "263A-FE0F": ("smiling face",),
    "2714-FE0F": ("check mark",),
    "2705": ("green check mark",),
    "261D-FE0F": ("index pointing up",),
    "1F50D": ("magnifying glass",),
    "1F50E": ("right-pointing magnifying glass",),
    "1F4E3": ("cheering megaphone", "megaphone"),
    "1F4A9": ("pile of poo",),
    "1F446": ("backhand index pointing up",),
    "1F935": ("person in tuxedo",),
}


class Picture(NamedTuple):
    """One file of the package.

    Attributes:
        codepoint: the file's name.
        captions: its names.
        entry: index of its description in emoji.json.
        tone: 0, or 1 + an index of `TONES`.
        rgba: float [32, 32, 4] in [0, 255], colours times opacity.
    """

    codepoint: str
    captions: tuple[str, ...]
    entry: int
    tone: int
    rgba: np.ndarray


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


def fashion_mnist(folder: Path) -> dict[str, np.ndarray]:
    """Read the first images of each class.

    Args:
        folder: folder of the four published .gz files.

    Returns:
        the arrays of fashion_mnist.npz.
    """
    arrays = {}
    for split, stem, per_class in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        x = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        label = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        keep = first_of_each_class(label, per_class)
        arrays[f"{split}_x"], arrays[f"{split}_label"] = x[keep], label[keep]
    return arrays


def twemoji(folder: Path) -> dict[str, np.ndarray]:
    """Read the pictures, without flags, letters, clock faces, and pairs of people of two skin tones.

    Args:
        folder: the unpacked npm package.

    Returns:
        the arrays of twemoji.npz, see `data.twemoji.load_twemoji`.
    """
    entries = [entry for entry in json.loads((folder / "emoji.json").read_text()) if is_kept(entry)]
    entries.sort(key=lambda entry: entry["sort_order"])
    pictures, captions, base = merge(list(_pictures(folder / "img" / "twitter" / "64", entries)))
    yellow = sum(picture.tone == 0 for picture in pictures)
    white = np.rint(np.stack([_on(picture.rgba, 255) for picture in pictures])).astype(np.uint8)
    alpha = np.rint(np.stack([picture.rgba[..., 3] for picture in pictures[:yellow]])).astype(np.uint8)
    kinds = {
        key: np.unique([entries[picture.entry][key] for picture in pictures[:yellow]], return_inverse=True)
        for key in ("category", "subcategory")
    }
    return {
        "x": white[:yellow],
        "change": white[yellow:] - white[base[yellow:]],  # modulo 256
        "alpha": alpha,
        "caption": np.array([text for texts in captions for text in texts]),
        "caption_of": np.repeat(np.arange(len(captions)), [len(texts) for texts in captions]).astype(np.int16),
        "categories": kinds["category"][0],
        "category": kinds["category"][1].astype(np.uint8),
        "subcategories": kinds["subcategory"][0],
        "subcategory": kinds["subcategory"][1].astype(np.uint8),
        "codepoint": np.array([picture.codepoint for picture in pictures]),
        "tone": np.array([picture.tone for picture in pictures], np.uint8),
        "base": base.astype(np.int16),
    }


def is_kept(entry: dict[str, Any]) -> bool:
    """Whether a description of emoji.json is of a picture that is embedded."""
    dropped = entry["category"] in ("Flags", "Component") or entry["subcategory"] == "alphanum"
    return entry["has_img_twitter"] and not dropped and not entry["name"].startswith("CLOCK FACE")


def names_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """The names of a picture: the character's, and its common short name, if that has fewer words or letters.

    Args:
        entry: a description of emoji.json.
    """
    if entry["unified"] in NAMES:
        return NAMES[entry["unified"]]
    name = entry["name"].lower().replace("\u2019", "").removeprefix("large ")
    short = entry["short_names"][0].replace("_", " ").replace("large ", "").strip()
    misnomer = any(word in name.split() and word not in short.split() for word in ("black", "white"))
    if misnomer:
        return (short,)
    words, shorter = re.findall("[a-z]+", name), short.split()
    natural = re.fullmatch("[a-z]{3,}( [a-z]+)*", short) and words != shorter and len(shorter) <= len(words)
    return (name, short) if natural and len(short) < len(name) else (name,)


def merge(pictures: list[Picture]) -> tuple[list[Picture], list[tuple[str, ...]], np.ndarray]:
    """Merge pictures of the same tone that look the same; the first is kept, with the names of all.

    Args:
        pictures: with tone 0 first.

    Returns:
        the kept pictures; their captions, each of which is a caption of one picture; and the index of the kept picture
        with tone 0 of each.
    """
    rgba = np.stack([picture.rgba for picture in pictures])
    distance = np.maximum(*(_distances(_on(rgba, ground)) for ground in (255, 0)))
    kept: list[int] = []
    captions: list[list[str]] = []
    into = np.empty(len(pictures), int)  # picture -> position of its like in `kept`
    for i, picture in enumerate(pictures):
        like = [k for k, j in enumerate(kept) if distance[i, j] < SAME and (not pictures[j].tone) == (not picture.tone)]
        near = like[0] if like else len(kept)
        if not like:
            kept.append(i)
            captions.append([])
        captions[near] += picture.captions[:1]
        into[i] = near
    # A short name comes last, and only if no picture has it already: "dog" is the animal, "dog face" its face.
    taken = {text for texts in captions for text in texts}
    for i, picture in enumerate(pictures):
        for text in picture.captions[1:]:
            if text not in taken:
                captions[into[i]].append(text)
                taken.add(text)
    first = {picture.entry: into[i] for i, picture in enumerate(pictures) if picture.tone == 0}
    base = np.array([first[pictures[i].entry] for i in kept])
    return [pictures[i] for i in kept], [tuple(dict.fromkeys(texts)) for texts in captions], base


def _pictures(files: Path, entries: list[dict[str, Any]]) -> Iterator[Picture]:
    for i, entry in enumerate(entries):
        yield _read(files, entry["image"], names_of(entry), (i, 0))
    for i, entry in enumerate(entries):
        variants = entry.get("skin_variations", {})
        for tone, key in enumerate(TONE_KEYS, 1):
            if key in variants:
                text = f"{names_of(entry)[0]}, {TONES[tone - 1]} skin tone"
                yield _read(files, variants[key]["image"], (text,), (i, tone))


def _read(files: Path, name: str, captions: tuple[str, ...], index: tuple[int, int]) -> Picture:
    from PIL import Image

    with Image.open(files / name) as image:
        rgba = np.asarray(image.convert("RGBA"), np.float64)
    rgba[..., :3] *= rgba[..., 3:] / 255  # before averaging, so that transparent pixels have no colour
    ratio = len(rgba) // SIDE
    rgba = rgba.reshape(SIDE, ratio, SIDE, ratio, 4).mean((1, 3))
    return Picture(name.removesuffix(".png"), captions, *index, rgba)


def _on(rgba: np.ndarray, ground: int) -> np.ndarray:
    """Pictures on a ground of grey."""
    return rgba[..., :3] + ground * (1 - rgba[..., 3:] / 255)


def _distances(x: np.ndarray) -> np.ndarray:
    """Mean squared differences of each picture and each, in [-1, 1]."""
    flat = x.reshape(len(x), -1) / 127.5
    square = np.square(flat).sum(1)
    return (square[:, None] + square - 2 * flat @ flat.T) / flat.shape[1]


def main(name: str, folder: str) -> None:
    """Write an embedded data set next to this file.

    Args:
        name: "fashion_mnist" or "twemoji".
        folder: folder of its published files.
    """
    arrays = {"fashion_mnist": fashion_mnist, "twemoji": twemoji}[name](Path(folder))
    with replacing(Path(__file__).with_name(f"{name}.npz")) as partial_path:
        np.savez_compressed(partial_path, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
