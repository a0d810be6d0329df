"""Grids: the noise levels of a sampler's steps, from noise to data.

A grid is a `Level` whose fields have shape [N + 1], noisiest first; `levels.at(i)` is one of its levels. Any decreasing
times of a process give a grid, e.g. `process(np.linspace(1, 0, 51))`. Inside `jit`, a grid of concrete numbers stays
concrete, so that its values are checked there, too.

The number of steps n may be traced if `max_steps`, its static bound, is given. The fields then have shape
[max_steps + 1], and the levels after step n repeat the last one: pass `stop=n` to `sample`.
"""

from jaxdiff.grids.sigma import by_angle, by_lambda, exponential, karras, polyexponential
from jaxdiff.grids.tables import AYS, ddpm, from_sigmas, respaced
from jaxdiff.grids.time import beta, by_time, cosine, shifted
from jaxdiff.grids.truncate import nearest, truncate

__all__ = [
    "AYS",
    "beta",
    "by_angle",
    "by_lambda",
    "by_time",
    "cosine",
    "ddpm",
    "exponential",
    "from_sigmas",
    "karras",
    "nearest",
    "polyexponential",
    "respaced",
    "shifted",
    "truncate",
]
