"""Likelihood: bounds by steps and in continuous time, the exact one by the probability-flow ODE; bits per dimension."""

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
