"""Likelihood: variational bounds in discrete and continuous time, and exactly by the probability-flow ODE."""

from jaxdiff.likelihood.bits import bits_per_dim, dequantize
from jaxdiff.likelihood.continuous import ContinuousBound, continuous_bound
from jaxdiff.likelihood.exact import LogLikelihood, log_likelihood
from jaxdiff.likelihood.variational import Bound, discretized_normal_nll, normal_kl, variational_bound, variational_term

__all__ = [
    "Bound",
    "ContinuousBound",
    "LogLikelihood",
    "bits_per_dim",
    "continuous_bound",
    "dequantize",
    "discretized_normal_nll",
    "log_likelihood",
    "normal_kl",
    "variational_bound",
    "variational_term",
]
