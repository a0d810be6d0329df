"""`jaxdiff sample DIRECTORY --prompt TEXT`: pictures of a text-to-image directory."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import train
from jaxdiff.cli.progress import Progress, busy
from jaxdiff.experiment import compute_dtype, example_keys
from jaxdiff.interop import Pipeline, text_to_image
from jaxdiff.sharding import BATCH_AXES

__all__ = ["draw_prompt", "is_pipeline"]


def is_pipeline(directory: Path) -> bool:
    """Whether a directory is a text-to-image pipeline's, and no run."""
    return (directory / "model_index.json").is_file()


def draw_prompt(
    directory: Path,
    prompt: str,
    *,
    num: int,
    negative: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    scheduler: str | None = None,
    seed: int = 0,
    batch: int = 4,
) -> np.ndarray:
    """Draw pictures of a prompt, in batches of one compiled size that are split over all devices.

    Args:
        directory: of Stable Diffusion 1, 2, XL, 3 or Flux.
        prompt: what to show.
        num: how many.
        negative: what to keep away from; None: an empty prompt.
        guidance: scale, 1 is off; None is the usual one.
        steps: number of steps; None is the usual one.
        size: (height, width); None is the network's own.
        scheduler: class of the scheduler, in place of the directory's.
        seed: picture i depends on the seed and i alone.
        batch: pictures at a time, rounded up to a multiple of the devices.
    Returns:
        float32 [num, height, width, 3] in [-1, 1].
    Raises:
        ValueError: a number out of range, a negative prompt without use for it, or what the directory lacks.
    """
    if num < 1 or batch < 1:
        raise ValueError(f"num and batch must be at least 1, got {num} and {batch}")
    mesh = train.make_mesh()
    batch = -(-min(batch, num) // mesh.size) * mesh.size
    rounds = -(-num // batch)
    first = 0  # step of the round

    def progress(done) -> None:
        bar.update(first + int(done) - bar.n)  # several devices may tell of one step

    with busy("loading"):
        pipe = text_to_image(
            directory, steps=steps, size=size, kind=scheduler, dtype=compute_dtype(), progress=progress,
            place=lambda tree: train.shard_params(tree, mesh),
        )  # fmt: skip
    scale, negative = _guidance(pipe, guidance, negative)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    tokens = jax.device_put(pipe.tokenize([prompt] * batch), split)
    away = None if negative is None else jax.device_put(pipe.tokenize([negative] * batch), split)
    keys = example_keys(seed, rounds * batch).reshape(rounds, batch)
    generate = jax.jit(pipe.generate)
    pictures = []
    with Progress("sampling", rounds * pipe.steps, "step") as bar:
        for i in range(rounds):
            first = i * pipe.steps
            part = generate(pipe.params, tokens, jax.device_put(keys[i], split), scale, negative=away)
            pictures.append(np.asarray(part))
            jax.effects_barrier()
    return np.concatenate(pictures)[:num]


def _guidance(pipe: Pipeline, scale: float | None, negative: str | None) -> tuple[float | None, str | None]:
    """The scale and the negative prompt to use, None for no guidance or no such prompt."""
    if scale is not None and pipe.guidance is None:
        raise ValueError("this network works without guidance")
    scale = pipe.guidance if scale is None else scale
    if not pipe.negative or scale == 1:
        if negative is not None:
            why = "is 1" if pipe.negative else "of this network is not classifier-free"
            raise ValueError(f"a negative prompt needs classifier-free guidance; guidance {why}")
        return (None if pipe.negative else scale), None
    return scale, ("" if negative is None and not pipe.zeros else negative)
