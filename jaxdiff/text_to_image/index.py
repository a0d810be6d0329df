"""The parts of a text-to-image pipeline: of a directory, as its model_index.json names them, or of one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import text
from jaxdiff.interop.checkpoint import load
from jaxdiff.interop.sources import find_part, open_single, read_fields
from jaxdiff.messages import listed
from jaxdiff.schema import look_up
from jaxdiff.storage import read_json
from jaxdiff.text_to_image.prompts import LAYOUTS, Cond, Models, PipelineSpec
from jaxdiff.types import Params

__all__ = ["Index", "encode_prompts", "prompt_encoder", "read_index", "read_kind", "scheduler_config", "tokenizers"]


class Index(NamedTuple):
    """Where the parts of a pipeline lie.

    Attributes:
        fields: of model_index.json.
        layout: the kind of pipeline.
        models: the network, the autoencoder and the text encoders, by the names of their directories.
        tokenizers: the directories of the text encoders' vocabularies, by the text encoders' names.
        scheduler: its directory, or its config.
    """

    fields: Mapping[str, Any]
    layout: PipelineSpec
    models: dict[str, Path]
    tokenizers: dict[str, Path]
    scheduler: Path | Mapping[str, Any]


def read_kind(path: Path) -> tuple[Mapping[str, Any], PipelineSpec]:
    """The fields of a pipeline's model_index.json, and its kind.

    Raises:
        ValueError: there are none, or its class is not known.
    """
    single = open_single(path)
    if single is not None and not single.fields:
        raise ValueError(f"{path} holds {listed(single.parts)}, and no network that makes pictures")
    fields = single.fields if single is not None else read_json(path / "model_index.json")
    return fields, look_up(LAYOUTS, fields.get("_class_name"), "pipeline", f" in {path}")


def read_index(path: str | Path, base: str | Path | None = None, *, decodes: bool = True) -> Index:
    """Find the parts of a pipeline and its kind.

    Args:
        path: a directory with model_index.json, or a checkpoint in one file.
        base: a pipeline's directory that gives what the path lacks: for a file the tokenizers, at least.
        decodes: whether the autoencoder is needed.

    Raises:
        ValueError: there is no model_index.json, the pipeline's class is not known, or a part is missing.
    """
    path, others = Path(path), [] if base is None else [Path(base)]
    fields, layout = read_kind(path)
    single = open_single(path)
    # An encoder that this kind of pipeline can do without comes from a base of the same kind.
    for other in (p for p in others if (p / "model_index.json").is_file()):
        found = read_json(other / "model_index.json")
        fields = {**(found if found.get("_class_name") == fields["_class_name"] else {}), **fields}
    encoders = [part for part, optional in layout.encoders.items() if not optional or _named(fields, part)]
    parts = [layout.network, *(["vae"] if decodes else []), *encoders]
    models = {part: _find(part, path, *others) for part in parts}
    names = {part: part.replace("text_encoder", "tokenizer") for part in encoders}
    words = {
        part: next((p / name for p in (path, *others) if (p / name).is_dir()), None) for part, name in names.items()
    }
    missing = [part for part, where in models.items() if where is None]
    missing += [names[part] for part, where in words.items() if where is None and single is not None]
    if missing:
        held = f"holds {listed(single.parts)}, and lacks" if single is not None else "lacks"
        raise ValueError(f"{path} {held} {', '.join(missing)}: give a base, a directory of this kind that has them")
    return Index(
        fields,
        layout,
        {part: where for part, where in models.items() if where is not None},
        {part: where or path / names[part] for part, where in words.items()},
        scheduler_config(path, base) or path / "scheduler",
    )


def _named(fields: Mapping[str, Any], part: str) -> bool:
    """Whether an index names a class for a part; one that is left out has nulls."""
    held = fields.get(part)
    return isinstance(held, list) and any(held)


def _find(part: str, *pipelines: Path) -> Path | None:
    found = (find_part(pipeline, part) for pipeline in pipelines)
    return next((where for where, pipeline in zip(found, pipelines, strict=True) if where != pipeline), None)


def scheduler_config(path: Path, base: str | Path | None = None) -> Path | Mapping[str, Any] | None:
    """The scheduler of a pipeline: its directory, its config, or None where there is none.

    That of a file is the base's, or the published models'; what the file itself says of its prediction goes before.
    """
    folders = [Path(p) / "scheduler" for p in (path, base) if p is not None]
    own = [folder for folder in folders if (folder / "scheduler_config.json").is_file()]
    single = open_single(path)
    if single is None:
        return own[0] if own else None
    return (read_json(own[0] / "scheduler_config.json") if own else single.scheduler) | single.scheduler_overrides


def tokenizers(index: Index, models: Models) -> dict[str, Any]:
    """Texts -> tokens, by the text encoder's name."""
    lengths = {
        name: models.length if models.config[name]["_class_name"] == "T5EncoderModel" else None
        for name in index.tokenizers
    }
    return {name: text.tokenizer(folder, length=lengths[name]) for name, folder in index.tokenizers.items()}


def encode_prompts(
    directory: str | Path, prompts: Sequence[str], *, size: tuple[int, int], base: str | Path | None = None,
    dtype: Any = jnp.float32,
) -> Cond:  # fmt: skip
    """Encode prompts as the condition of a text-to-image network; the text encoders are read and dropped.

    Args:
        directory: of Stable Diffusion 1, 2, XL, 3 or Flux, or a checkpoint in one file.
        prompts: B texts.
        size: (height, width) of the images, an input of Stable Diffusion XL.
        base: a directory that gives what the other lacks; for a file the tokenizers, at least.
        dtype: of the encoders' computation.

    Returns:
        the condition by its names, float32 [B, ...].

    Raises:
        ValueError: the pipeline's class is not known, or an encoder is missing.
    """
    return prompt_encoder(directory, size=size, base=base, dtype=dtype)(prompts)


def prompt_encoder(
    directory: str | Path, *, size: tuple[int, int], base: str | Path | None = None, dtype: Any = jnp.float32
) -> Callable[[Sequence[str]], Cond]:
    """Make `encode_prompts` for many lists of prompts; each length of a list compiles once.

    Args:
        directory: these arguments, the condition and the errors are those of `encode_prompts`.
        size: (height, width) of the images.
        base: a directory that gives what the other lacks.
        dtype: of the encoders' computation.

    Returns:
        B texts -> the condition by its names, float32 [B, ...].
    """
    index = read_index(directory, base, decodes=False)
    layout = index.layout
    loaded = {part: load(index.models[part], dtype=dtype) for part in index.tokenizers}
    configs = {part: model.config for part, model in loaded.items()}
    configs[layout.network] = read_fields(index.models[layout.network])
    layout.check(configs[layout.network])
    models = Models({part: model.apply for part, model in loaded.items()}, configs, layout.length)
    params, tokenize = {part: model.params for part, model in loaded.items()}, tokenizers(index, models)

    @jax.jit
    def encode(params: Params, tokens: Any, negative: Array) -> Cond:
        cond = layout.add_size_cond(models, layout.encode(models, params, tokens), size, negative)
        return jax.tree.map(lambda a: a.astype(jnp.float32), cond)

    def encoded(prompts: Sequence[str]) -> Cond:
        tokens = {part: tokens_of(prompts)[0] for part, tokens_of in tokenize.items()}
        return encode(params, tokens, jnp.zeros(len(prompts), bool))

    return encoded
