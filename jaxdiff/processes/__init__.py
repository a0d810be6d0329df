"""Diffusion processes: frozen dataclasses, pytrees of numbers, that map a time to a `Level`.

`process(t)` returns `Level(t, alpha, sigma)`; `time(lam)` is the inverse in lam = log(alpha / sigma); `sde(t)` returns
the coefficients (f, g) of dx = f x dt + g dw. For an array of decreasing times `process(ts)` is a grid to sample on.
The numbers of a process may be arrays, and may be learned. `t_max` and `t_min` are the noisiest and the cleanest time,
the defaults of grids; losses use `t_max` only.
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
