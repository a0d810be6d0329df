"""Solvers: one file per family; each public function makes a `Solver`."""

from jaxdiff.solvers.ancestral import euler_ancestral
from jaxdiff.solvers.base import Solver
from jaxdiff.solvers.consistency import consistency
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.deis import deis
from jaxdiff.solvers.dpm import dpm_solver
from jaxdiff.solvers.dpm_2 import dpm_2, dpm_2_ancestral
from jaxdiff.solvers.dpm_adaptive import dpm_adaptive
from jaxdiff.solvers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from jaxdiff.solvers.edm import euler, heun
from jaxdiff.solvers.er_sde import er_sde
from jaxdiff.solvers.flow_map import flow_map
from jaxdiff.solvers.langevin import annealed_langevin, predictor_corrector
from jaxdiff.solvers.lms import lms
from jaxdiff.solvers.pndm import ipndm, plms, pndm
from jaxdiff.solvers.restart import restart
from jaxdiff.solvers.runge_kutta import rk4, rk23, rk45
from jaxdiff.solvers.sa_solver import sa_solver
from jaxdiff.solvers.sde import euler_maruyama, reverse_diffusion
from jaxdiff.solvers.unipc import unipc

__all__ = [
    "Solver",
    "annealed_langevin",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_adaptive",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "flow_map",
    "heun",
    "ipndm",
    "lms",
    "plms",
    "pndm",
    "predictor_corrector",
    "restart",
    "reverse_diffusion",
    "rk4",
    "rk23",
    "rk45",
    "sa_solver",
    "unipc",
]
