"""The parts of a text-to-image directory, as its model_index.json names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import text
from jaxdiff.interop.checkpoint import load
from jaxdiff.interop.files import read_config, read_json
from jaxdiff.interop.prompts import LAYOUTS, Cond, Layout, Models

__all__ = ["check_parts", "encode_prompts", "encoders", "read_index", "tokenizers"]


def read_index(directory: Path) -> tuple[dict[str, Any], Layout]:
    """Reads model_index.json, and tells the kind of pipeline.

    Raises:
        ValueError: there is none, or its class is not known.
    """
    index = read_json(directory / "model_index.json")
    name = index.get("_class_name")
    if name not in LAYOUTS:
        raise ValueError(f"unknown pipeline {name!r} in {directory}; there are: {', '.join(sorted(LAYOUTS))}")
    return index, LAYOUTS[name]


def encoders(index: Mapping[str, Any], layout: Layout) -> list[str]:
    """The directories of the text encoders."""
    return [name for name, optional in layout.encoders.items() if not optional or any(index.get(name) or ())]


def check_parts(directory: Path, parts: Sequence[str]) -> None:
    """Refuses a directory that lacks one of its parts' directories.

    Raises:
        ValueError: it does.
    """
    missing = [name for name in parts if not (directory / name).is_dir()]
    if missing:
        raise ValueError(f"{directory} lacks {', '.join(missing)}")


def tokenizers(directory: Path, models: Models, layout: Layout) -> dict[str, Any]:
    """By the encoder's name; "text_encoder_2" has "tokenizer_2"."""
    made = {}
    for name in layout.encoders:
        if name in models.apply:
            length = models.length if models.config[name]["_class_name"] == "T5EncoderModel" else None
            made[name] = text.tokenizer(directory / name.replace("text_encoder", "tokenizer"), length=length)
    return made


def encode_prompts(
    directory: str | Path, prompts: Sequence[str], *, size: tuple[int, int], dtype: Any = jnp.float32
) -> Cond:
    """What the network of a text-to-image directory sees of prompts; the text encoders are read for it and dropped.

    Args:
        directory: of Stable Diffusion 1, 2, XL, 3 or Flux.
        prompts: B texts.
        size: (height, width) of the images, which Stable Diffusion XL is told.
        dtype: of the encoders' computation.

    Returns:
        The condition by its names, float32 [B, ...].

    Raises:
        ValueError: the pipeline's class is not known, or an encoder is missing.
    """
    directory = Path(directory)
    index, layout = read_index(directory)
    parts = encoders(index, layout)
    check_parts(directory, [layout.network, *parts])
    loaded = {part: load(directory / part, dtype=dtype) for part in parts}
    configs = {part: model.config for part, model in loaded.items()}
    configs[layout.network] = read_config(directory / layout.network)[1]
    models = Models({part: model.apply for part, model in loaded.items()}, configs, layout.length)
    tokens = {part: encode(prompts)[0] for part, encode in tokenizers(directory, models, layout).items()}

    def encode(params: Any, tokens: Any) -> Cond:
        cond = layout.complete(models, layout.encode(models, params, tokens), size, False)
        return jax.tree.map(lambda a: a.astype(jnp.float32), cond)

    return jax.jit(encode)({part: model.params for part, model in loaded.items()}, tokens)
