"""jaxdiff: a functional diffusion toolkit in JAX/Flax for TPUs and GPUs."""

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
    "solvers",
    "times",
    "tune",
    "weights",
]
