"""Inverse problems: what the picture should have been, from a measurement of it and a denoiser.

Denoiser -> Denoiser: `tmpd`, `pigdm`, `dps`, `diffpir`, `ddnm`, and `guide` for any loss. Solver -> Solver: `replace`,
`mcg`, `dps_normalized`. Solvers of their own: `ddrm`, `daps` and `split_gibbs` with `exact` or `langevin`,
`twisted`. A loss: `red_diff`.
Edits: `flow_edit`, `edit_friendly`, `null_text`.
"""

from jaxdiff.inverse import operators
from jaxdiff.inverse.ddrm import ddrm
from jaxdiff.inverse.decoupled import X0Sampler, daps, exact, langevin, split_gibbs
from jaxdiff.inverse.edit_friendly import edit_friendly
from jaxdiff.inverse.flow_edit import flow_edit
from jaxdiff.inverse.guide import dps, dps_normalized, guide
from jaxdiff.inverse.null_text import null_text
from jaxdiff.inverse.operators import Operator
from jaxdiff.inverse.posterior import ddnm, diffpir, pigdm, tmpd
from jaxdiff.inverse.replace import mcg, replace
from jaxdiff.inverse.twisted import Particles, twisted
from jaxdiff.inverse.variational import red_diff
from jaxdiff.inverse.windows import windows

__all__ = [
    "Operator",
    "Particles",
    "X0Sampler",
    "daps",
    "ddnm",
    "ddrm",
    "diffpir",
    "dps",
    "dps_normalized",
    "edit_friendly",
    "exact",
    "flow_edit",
    "guide",
    "langevin",
    "mcg",
    "null_text",
    "operators",
    "pigdm",
    "red_diff",
    "replace",
    "split_gibbs",
    "tmpd",
    "twisted",
    "windows",
]
