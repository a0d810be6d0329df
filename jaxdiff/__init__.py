"""jaxdiff: a functional diffusion toolkit in JAX/Flax for TPUs and GPUs."""

from jaxdiff import grids, guidance, levels, losses, noise, parameterize, processes, solvers, times, weights
from jaxdiff.levels import Level
from jaxdiff.parameterize import denoiser
from jaxdiff.sample import sample, sample_path

__all__ = [
    "Level",
    "denoiser",
    "grids",
    "guidance",
    "levels",
    "losses",
    "noise",
    "parameterize",
    "processes",
    "sample",
    "sample_path",
    "solvers",
    "times",
    "weights",
]
