"""jaxdiff: a functional diffusion toolkit in JAX/Flax for TPUs and GPUs."""

from importlib import import_module as _import_module
from typing import Any as _Any

from jaxdiff import (
    distill,
    grids,
    guidance,
    inverse,
    levels,
    likelihood,
    losses,
    noise,
    parameterize,
    processes,
    quantize,
    sde,
    sharding,
    solvers,
    times,
    tune,
    types,
    weights,
)
from jaxdiff.caching import sample_cached
from jaxdiff.levels import Level
from jaxdiff.parallel import sample_parallel, stream
from jaxdiff.parameterize import denoiser
from jaxdiff.sample import invert, invert_path, sample, sample_path, sample_state

__all__ = [
    "Level",
    "denoiser",
    "distill",
    "grids",
    "guidance",
    "inverse",
    "invert",
    "invert_path",
    "levels",
    "likelihood",
    "losses",
    "noise",
    "parameterize",
    "processes",
    "quantize",
    "sample",
    "sample_cached",
    "sample_parallel",
    "sample_path",
    "sample_state",
    "sde",
    "sharding",
    "solvers",
    "stream",
    "times",
    "tune",
    "types",
    "weights",
]

# Rooms with Flax, Orbax or files: imported when first used, so that `import jaxdiff` costs little more than jax.
_LATER = (
    "autoencoders", "caching", "cascade", "conditions", "control", "data", "domains", "edit", "experiment",
    "first_stage", "image_text", "imagine", "interop", "latents", "media", "metrics", "models", "networks", "parallel",
    "plan", "pretrained", "run", "text", "text_encoders", "text_to_image", "train", "training", "unclip",
)  # fmt: skip
_NAMES = {"Experiment": "experiment", "load": "recipe", "load_run": "recipe"}


def __getattr__(name: str) -> _Any:
    if name in _LATER:
        return _import_module(f"jaxdiff.{name}")
    if name in _NAMES:
        return getattr(_import_module(f"jaxdiff.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATER, *_NAMES, *(name for name in globals() if name.startswith("__"))})
