"""`jaxdiff sample DIRECTORY --prompt TEXT`: pictures of a text-to-image directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff import text_to_image, train
from jaxdiff.distributed import gather
from jaxdiff.experiment import compute_dtype
from jaxdiff.imagine import Hint
from jaxdiff.interop.sources import is_file
from jaxdiff.media import Samples
from jaxdiff.progress import Progress, busy
from jaxdiff.quantize import Weights
from jaxdiff.schema import GUIDANCE
from jaxdiff.seeds import example_keys
from jaxdiff.sharding import batch_sharding, make_mesh, num_batch_shards, use_mesh
from jaxdiff.text_to_image.index import read_kind
from jaxdiff.text_to_image.parts import Parts
from jaxdiff.text_to_image.prompts import check_guided
from jaxdiff.text_to_image.steering import hint_shapes

__all__ = ["draw_prompts", "is_pipeline"]


def is_pipeline(directory: Path) -> bool:
    """Whether a path is of a text-to-image directory or of such a checkpoint in one file, and no run.

    Raises:
        ValueError: it is a pipeline's of another kind.
    """
    return (is_file(directory) or (directory / "model_index.json").is_file()) and bool(read_kind(directory))


def draw_prompts(
    directory: Path,
    prompts: Sequence[str],
    *,
    num: int,
    negative: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    scheduler: str | None = None,
    base: Path | None = None,
    variant: str | None = None,
    seed: int = 0,
    batch: int = 4,
    mesh: Mesh | None = None,
    controls: Sequence[Path] = (),
    hints: Sequence[Hint] = (),
    weights: Weights | None = None,
) -> Samples:
    """Draw pictures of prompts, in batches of one compiled size that are split over the devices.

    Args:
        directory: of Stable Diffusion 1, 2, XL, 3 or Flux, or a checkpoint in one file.
        prompts: what to show, in turn.
        num: how many.
        negative: what to keep away from; None: an empty prompt.
        guidance: scale, 1 is off; None is the usual one.
        steps: number of steps; None is the usual one.
        size: (height, width); None is the network's own.
        scheduler: class of the scheduler, in place of the directory's.
        base: directory that gives what the other lacks; see `text_to_image.load`.
        variant: of the weights in a directory.
        seed: picture i depends on the seed and i alone.
        batch: pictures at a time, rounded up to a multiple of the mesh's parts of a batch.
        mesh: where the parameters lie, and over which pictures are split; None: pictures alone, over all devices.
        controls: what steers, as for `text_to_image.load`.
        hints: of each control what all pictures follow, and a scale, of which 0 is off.
        weights: "int8" or "float8": kernels in 8 bits, as for `text_to_image.load`; None: as in the files.

    Returns:
        the pictures, float32 [num, height, width, 3] in [-1, 1], and their prompts.

    Raises:
        ValueError: a number out of range, a negative prompt without use for it, or what the directory lacks.
    """
    if num < 1 or batch < 1:
        raise ValueError(f"num and batch must be at least 1, got {num} and {batch}")
    if guidance is not None:
        GUIDANCE.check("guidance", guidance)
    where = make_mesh() if mesh is None else mesh
    parts = num_batch_shards(where)
    batch = -(-min(batch, num) // parts) * parts
    rounds = -(-num // batch)
    first = 0  # step of the round

    def progress(done) -> None:
        bar.update(first + int(done) - bar.n)  # several devices may tell of one step

    options: Any = {
        "steps": steps, "size": size, "kind": scheduler, "base": base, "dtype": compute_dtype(), "controls": controls,
    }  # fmt: skip
    described = text_to_image.describe(directory, **options)  # mistakes show before gigabytes are read
    described.check_whole()
    scale, negative = _guidance(described, guidance, negative)
    read = [hint.read(shape) for hint, shape in zip(hints, hint_shapes(described).values(), strict=True)]
    with busy("loading"):
        pipe = text_to_image.load(
            directory, **options, variant=variant, progress=progress, param_dtype=weights,
            place=lambda tree: train.shard_params(tree, where),
        )  # fmt: skip
    split = batch_sharding(where)
    names = tuple(prompts[i % len(prompts)] for i in range(rounds * batch))
    away = None if negative is None else jax.device_put(pipe.tokenize([negative] * batch), split)
    keys = example_keys(seed, rounds * batch).reshape(rounds, batch)
    repeated = jax.tree.map(lambda a: np.repeat(np.asarray(a)[None], batch, axis=0), read)
    steering: dict[str, Any] = {}
    if controls:
        scales = [jnp.float32(hint.scale) for hint in hints]
        steering = {"hints": jax.device_put(repeated, split), "control_scale": scales}

    @jax.jit
    def generate(*args: Any, **options: Any) -> jax.Array:
        with use_mesh(where):
            return pipe.generate(*args, **options)

    pictures = []
    with Progress("sampling", rounds * pipe.steps, "step") as bar:
        for i in range(rounds):
            first = i * pipe.steps
            tokens = jax.device_put(pipe.tokenize(names[i * batch : (i + 1) * batch]), split)
            part = generate(pipe.params, tokens, jax.device_put(keys[i], split), scale, negative=away, **steering)
            pictures.append(np.asarray(gather(part)))
            jax.effects_barrier()
    choices = len(prompts) if len(prompts) > 1 else 4
    return Samples(np.concatenate(pictures)[:num], {}, choices, names=names[:num])


def _guidance(parts: Parts, scale: float | None, negative: str | None) -> tuple[float | None, str | None]:
    """The scale and the negative prompt to use, None for no guidance or no such prompt."""
    if scale is not None and parts.guidance is None:
        raise ValueError("this network works without guidance")
    scale = parts.guidance if scale is None else scale
    if not parts.classifier_free or scale == 1:
        if negative is not None:
            why = "is 1" if parts.classifier_free else "of this network is not classifier-free"
            raise ValueError(f"a negative prompt needs classifier-free guidance; guidance {why}")
        return (None if parts.classifier_free else scale), None
    check_guided(scale)
    return scale, ("" if negative is None and not parts.zero_negative else negative)
