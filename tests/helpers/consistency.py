"""Gaussian data N(M, V) in one dimension: its consistency function, and batches that are quadratures."""

import jax.numpy as jnp
import numpy as np

from jaxdiff.distill import Context
from jaxdiff.parameterize import with_noise_input

M, V = 0.7, 0.25


def variance(level):
    """V_t = alpha^2 V + sigma^2."""
    return level.alpha**2 * V + level.sigma**2


def consistency_function(x, level):
    """The end of the probability flow through x, M + sqrt(V / V_t) (x - alpha M)."""
    return M + np.sqrt(V) / jnp.sqrt(variance(level)) * (x - level.alpha * M)


def denoise(x, level):
    """E[x_0 | x_t] = M + alpha V / V_t (x - alpha M)."""
    level = level.expand_to(x)
    return M + level.alpha * V / variance(level) * (x - level.alpha * M)


def by_time(prediction):
    """The prediction with the process's time as the network's noise input."""
    return with_noise_input(prediction, lambda level: level.t)


def network(process, prediction, f):
    """The network of which f(params, x, level, cond) is the denoiser, if it receives its own time."""

    def apply(params, scaled, t, cond):
        level = process(t).expand_to(scaled)
        s = prediction(level)
        x = scaled / s.inp
        return (f(params, x, level, cond) - s.skip * x) / s.out

    return apply


def context(step=0, ema=None, frozen=None):
    return Context(jnp.asarray(step, jnp.int32), ema, frozen)


def hermite(n):
    """Nodes and weights with which a standard normal's expectation of a polynomial is exact, [n] each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / np.sqrt(2 * np.pi)


def quadrature(n=6):
    """x_0 and eps [n^2, 1], and weights [n^2] of mean 1."""
    nodes, weights = hermite(n)
    z, eps = (a.reshape(-1, 1) for a in np.meshgrid(nodes, nodes))
    return M + np.sqrt(V) * z, eps, n**2 * np.outer(weights, weights).reshape(-1)


def fixed(t, s, weight=1.0):
    """Pairs of times that are not drawn."""

    def pairs(key, batch, step):
        return tuple(jnp.broadcast_to(jnp.asarray(a, jnp.result_type(float)), (batch,)) for a in (t, s, weight))

    return pairs
