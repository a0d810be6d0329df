"""Measurements of a picture as linear operators: each factory returns an `Operator`."""

from jaxdiff.inverse.operators.base import Operator, linear, matrix
from jaxdiff.inverse.operators.fourier import fourier
from jaxdiff.inverse.operators.pictures import average, blur, mask
from jaxdiff.inverse.operators.radon import radon

__all__ = ["Operator", "average", "blur", "fourier", "linear", "mask", "matrix", "radon"]
