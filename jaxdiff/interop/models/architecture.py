"""A network as another project's config describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

__all__ = ["ModelSpec", "Pretrained", "ShardingFn"]

ShardingFn = Callable[[Any], Any]  # tree of shapes -> tree of shardings


def _same(key: str) -> str | None:
    return key


class ModelSpec(NamedTuple):
    """What a config makes: parameters, pure functions of them, and how other projects call the parameters.

    Attributes:
        init: key -> parameters; under `jax.eval_shape` it returns their shapes.
        apply: the network as a pure function, or a NamedTuple of them (an autoencoder's encode and decode).
        rename: our key -> theirs; see `interop.formats.keys`.
        alias: a key that some file uses -> theirs, for a name of an older or newer version; None for a tensor that
            carries no parameter (a table of positions).
        weights: name of the weights' file, without `.safetensors`.
    """

    init: Callable[[Array], Any]
    apply: Any
    rename: Callable[[str], str | None] = _same
    alias: Callable[[str], str | None] = _same
    weights: str = "diffusion_pytorch_model"


class Pretrained(NamedTuple):
    """A model of another project.

    Attributes:
        apply: the network as a pure function of (params, ...), or a NamedTuple of such functions.
        params: a nested dict of arrays.
        config: the fields of its config.json, with the class's name as `_class_name`.
    """

    apply: Any
    params: Any
    config: Mapping[str, Any]
