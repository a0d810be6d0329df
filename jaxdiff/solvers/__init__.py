"""Solvers: one file a family, each public function a factory of `Solver`."""

from jaxdiff.solvers.base import Solver
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.dpm import dpmpp_2m
from jaxdiff.solvers.edm import euler, heun

__all__ = ["Solver", "ddim", "ddpm", "dpmpp_2m", "euler", "heun"]
