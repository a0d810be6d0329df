"""Diffusion processes: frozen dataclasses, pytrees of numbers, that map a time to a `Level`.

A process is called with a time and answers `Level(t, alpha, sigma)`; `time(lam)` is its inverse in
lam = log(alpha / sigma); `sde(t)` answers the coefficients (f, g) of dx = f x dt + g dw. Since a process applies to
an array of times, `process(ts)` with decreasing `ts` is a grid to sample on. Numbers may be arrays and may be learned.
`t_max` and `t_min` are its noisiest and its cleanest time, for grids and losses that are given none.
"""

from jaxdiff.processes.base import AutodiffSDE, Process, UnitTime
from jaxdiff.processes.continuous import EDM, VE, VP, Cosine, Flow, Laplace, Sigmoid, SubVP
from jaxdiff.processes.discrete import Discrete
from jaxdiff.processes.learned import Learned
from jaxdiff.processes.shifted import Shifted

__all__ = [
    "EDM",
    "VE",
    "VP",
    "AutodiffSDE",
    "Cosine",
    "Discrete",
    "Flow",
    "Laplace",
    "Learned",
    "Process",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "UnitTime",
]
