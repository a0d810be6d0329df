"""Inverse problems: what the picture should have been, from a measurement of it and a denoiser."""

from jaxdiff.inverse import operators
from jaxdiff.inverse.guide import dps, dps_normalized, guide
from jaxdiff.inverse.operators import Operator
from jaxdiff.inverse.posterior import ddnm, diffpir, pigdm, tmpd

__all__ = ["Operator", "ddnm", "diffpir", "dps", "dps_normalized", "guide", "operators", "pigdm", "tmpd"]
