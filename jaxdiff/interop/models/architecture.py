"""Types for models of other projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

__all__ = ["ModelSpec", "Pretrained", "ShardingFn"]

ShardingFn = Callable[[Any], Any]  # tree of shapes -> tree of shardings


def _same(key: str) -> str | None:
    return key


class ModelSpec(NamedTuple):
    """A model described by a config: initial parameters, pure functions, and names of the parameters.

    Attributes:
        init: key -> parameters; `jax.eval_shape` of it gives their shapes.
        apply: the network as a pure function, or a NamedTuple of them (an autoencoder's encode and decode).
        rename: this library's key -> the other project's; see `interop.formats.keys`.
        alias: a key in a file -> the other project's key, for names of older or newer versions; None for a tensor
            that is no parameter (e.g. a table of positions).
        weights: name of the file of weights, without `.safetensors`.
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
        config: the fields of its config.json, with the class in `_class_name`.
    """

    apply: Any
    params: Any
    config: Mapping[str, Any]
