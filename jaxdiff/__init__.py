"""jaxdiff: a functional diffusion toolkit in JAX/Flax for TPUs and GPUs."""

from importlib import import_module
from types import ModuleType

from jaxdiff import (
    grids,
    guidance,
    levels,
    likelihood,
    losses,
    noise,
    parameterize,
    processes,
    sde,
    sharding,
    solvers,
    times,
    tune,
    weights,
)
from jaxdiff.levels import Level
from jaxdiff.parameterize import denoiser
from jaxdiff.sample import invert, sample, sample_path, sample_state

__all__ = [
    "Level",
    "denoiser",
    "grids",
    "guidance",
    "invert",
    "levels",
    "likelihood",
    "losses",
    "noise",
    "parameterize",
    "processes",
    "sample",
    "sample_path",
    "sample_state",
    "sde",
    "sharding",
    "solvers",
    "times",
    "tune",
    "weights",
]

# Rooms with Flax, Orbax or files: imported when first used, so that `import jaxdiff` costs little more than jax.
_LATER = ("autoencoders", "data", "interop", "metrics", "networks", "text", "text_to_image", "train")


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return import_module(f"jaxdiff.{name}")
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")
