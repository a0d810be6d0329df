"""`jaxdiff encode DIRECTORY`: a data set as latents and features of texts, for networks that are trained on those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from jaxdiff import data, latents, text_to_image
from jaxdiff.cli.options import Trust
from jaxdiff.cli.places import try_folder
from jaxdiff.data.shards import UNFINISHED
from jaxdiff.experiment import compute_dtype
from jaxdiff.options import Batch, Count, Num, Range
from jaxdiff.sharding import make_mesh
from jaxdiff.storage import replacing, sync, write_text
from jaxdiff.train.lock import Lock
from jaxdiff.trust import trusting

Rows = dict[str, np.ndarray]
Examples = list[dict[str, Any]]
Embed = Callable[[Sequence[str]], Rows]
TextsOf = Callable[[Examples], Rows]
PREVIEWS = 20  # captions whose prompts are written for previews


def command(
    directory: tyro.conf.Positional[Path],
    out: Path,
    source: str = "tfds:imagenet2012",
    split: str = "train",
    size: Count = 256,
    flip: bool = True,
    prompt: str = "",
    base: Path | None = None,
    batch: Batch = 32,
    rows: Num = 4096,
    trust: Trust = False,
) -> None:
    """Write the latents of images: the autoencoder's mean and standard deviation, in the scale of a diffusion model.

    Args:
        directory: directory or file of an autoencoder or of a pipeline that has one, or a run that has trained one.
        out: folder for the .npz files; with a prompt, also for prompts/classes.npz: the embedding of each class's
            prompt and, last, of the empty prompt; or prompts/captions.npz, those of twenty captions.
        source: fashion_mnist, twemoji, twemoji:tones, twemoji64:PACKAGE, openmoji, noto, compositions,
            compositions:core, compositions:few, tfds:NAME or folder:PATH.
        split: split of the source.
        size: side of the images in pixels.
        flip: also write each image mirrored, which captions that tell left from right don't allow.
        prompt: for a pipeline: prompt of an image; {} stands for its caption, where the source has captions, or for the
            name of its class.
        base: for a prompt: directory with the missing parts of the pipeline; for a file at least the tokenizers.
        batch: images at a time, a multiple of the number of devices.
        rows: examples per file.
    """
    _check_free(out)
    for name, value in (("batch", batch), ("rows", rows)):
        Range(1).check(name, value)
    captions = bool(prompt) and data.has_captions(source, split)
    texts = out / "prompts" / ("captions.npz" if captions else "classes.npz")
    if prompt and texts.exists():
        raise ValueError(f"{texts} already has prompts: choose another --out")
    try_folder(texts.parent if prompt else out, "--out")
    mesh = make_mesh()
    with trusting(trust):
        vae = latents.load_autoencoder(directory, mesh)
    images = data.open_dataset(source, split, size=size, channels=vae.config.get("in_channels", 3), captions=captions)
    load = partial(_embedder, directory, base, size)
    embeddings: tuple[Rows, TextsOf] = {}, lambda examples: {}
    if captions:
        embeddings = _of_captions(images, prompt, load, batch)
    elif prompt:
        embeddings = _of_classes(images, prompt, load)
    table, texts_of = embeddings
    encode = latents.encoder(vae, batch, mesh)

    with Lock(out, what="encoding"):
        _check_free(out)
        batches = _batches(images, encode, texts_of, batch=batch, flip=flip)
        write(out, _shards(batches, rows), {texts: table} if table else {})
    print(out)


def write(out: Path, shards: Iterator[Rows], tables: dict[Path, Rows]) -> None:
    """Write files of arrays atomically, and a mark that remains until all of them are complete.

    Args:
        out: the folder.
        shards: arrays of the files 00000.npz, 00001.npz, ...
        tables: arrays of the other files, by path.
    """
    mark = out / UNFINISHED
    for number, shard in enumerate(shards):
        if number == 0:
            write_text(mark, "The files in this folder are an incomplete data set while this file exists.\n")
        _save(out / f"{number:05d}.npz", shard)
    for path, table in tables.items():
        _save(path, table)
    mark.unlink(missing_ok=True)
    sync(out)


def _save(path: Path, arrays: Rows) -> None:
    with replacing(path) as partial_path:
        np.savez(partial_path, **arrays)  # type: ignore[arg-type]


def _check_free(out: Path) -> None:
    if (out / UNFINISHED).exists():
        raise ValueError(f"{out} is incomplete: delete it, or choose another --out")
    if any(out.glob("[!.]*.npz")):
        raise ValueError(f"{out} already has .npz files: choose another --out")


def _embedder(directory: Path, base: Path | None, size: int) -> Embed:
    encode = text_to_image.prompt_encoder(directory, size=(size, size), base=base, dtype=compute_dtype())
    return lambda prompts: {name: np.asarray(value, np.float16) for name, value in encode(prompts).items()}


def _of_classes(images: data.Dataset, prompt: str, load: Callable[[], Embed]) -> tuple[Rows, TextsOf]:
    """The embeddings of the classes' prompts, and the function that looks up those of examples."""
    prompts = data.class_prompts(prompt, images.class_names)
    table = load()(prompts)
    return table, lambda examples: {name: a[[each["label"] for each in examples]] for name, a in table.items()}


def _of_captions(images: data.Dataset, prompt: str, load: Callable[[], Embed], batch: int) -> tuple[Rows, TextsOf]:
    """The embeddings of some captions' prompts, and the function that makes those of up to `batch` examples."""
    embed, count = load(), min(len(images), PREVIEWS)
    of = lambda example: prompt.replace("{}", example["captions"][0])  # noqa: E731

    def texts_of(examples: Examples) -> Rows:
        rows = embed([*map(of, examples), *[""] * (batch - len(examples))])  # of one length, which compiles once
        return {name: a[: len(examples)] for name, a in rows.items()}

    return embed([*(of(images[len(images) * i // count]) for i in range(count)), ""]), texts_of


def _batches(
    images: data.Dataset, encode: latents.Encode, texts_of: TextsOf, *, batch: int, flip: bool
) -> Iterator[Rows]:
    count = -(-len(images) // batch)
    for examples in tqdm(data.read_ahead(images, batch), desc="encoding", unit="batch", total=count):
        x = data.to_float(np.stack([example["x"] for example in examples]))
        extra = texts_of(examples)
        if images.num_classes:
            extra["label"] = np.array([example["label"] for example in examples], np.int32)
        for pixels in (x, x[:, :, ::-1]) if flip else (x,):
            mean, std = encode(pixels)
            yield {"mean": mean.astype(np.float16), "std": std.astype(np.float16)} | extra


def _shards(batches: Iterator[Rows], rows: int) -> Iterator[Rows]:
    """Join batches to shards of `rows` rows; the last one has the remaining rows."""
    held: list[Rows] = []
    count = 0
    for batch in batches:
        while count + len(batch["mean"]) >= rows:
            yield _joined([*held, _cut(batch, slice(rows - count))])
            batch, held, count = _cut(batch, slice(rows - count, None)), [], 0
        if len(batch["mean"]):
            held.append(batch)
            count += len(batch["mean"])
    if held:
        yield _joined(held)


def _cut(batch: Rows, part: slice) -> Rows:
    return {name: value[part] for name, value in batch.items()}


def _joined(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
