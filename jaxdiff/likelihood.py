"""Likelihood: the terms of the variational bound."""

from __future__ import annotations

from math import log

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from jaxdiff.levels import check_variance, gained, posterior, q_sample
from jaxdiff.processes import Discrete

__all__ = ["discretized_normal_nll", "normal_kl", "variational_term"]


def normal_kl(mean: Array, std: Array, mean_hat: Array, std_hat: Array) -> Array:
    """KL(N(mean, std^2) || N(mean_hat, std_hat^2)), elementwise, in nats."""
    ratio = std / std_hat
    return -jnp.log(ratio) + 0.5 * (jnp.square(ratio) + jnp.square((mean - mean_hat) / std_hat) - 1)


def discretized_normal_nll(x: Array, mean: Array, std: Array, *, bins: int = 256) -> Array:
    """-log of a normal's mass in the bin of x, elementwise, in nats (Ho et al. 2020, arXiv:2006.11239, eq. 13).

    Args:
        x: data on `bins` equally spaced values from -1 to 1.
        mean, std: of the normal, which broadcast against x.
        bins: number of values; the outermost bins reach to infinity.
    Returns:
        like x.
    """
    half = 1 / (bins - 1)
    low, high = (x - half - mean) / std, (x + half - mean) / std
    # Mirror the upper tail into the lower one, where log_ndtr keeps its digits; then log(Phi(high) - Phi(low)).
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    inner = log_ndtr(high) + jnp.log(-jnp.expm1(log_ndtr(low) - log_ndtr(high)))
    first = log_ndtr((x + half - mean) / std)
    last = log_ndtr(-(x - half - mean) / std)
    return -jnp.where(x < -1 + half, first, jnp.where(x > 1 - half, last, inner))


def variational_term(
    denoise, process: Discrete, x0: Array, eps: Array, t: Array, *, variance: str = "learned"
) -> Array:
    """L_{t-1} of the variational bound of a DDPM, in bits per dimension (Ho et al. 2020, eq. 5).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and for t = 1 the decoder's -log p(x_0 | x_1). The whole bound is the
    sum over t = 1..T and the prior's term.

    Args:
        denoise: (x, level) -> x0_hat, or (x0_hat, frac) with learned variance.
        process: the beta table.
        x0: [B, ...], of 256 values in [-1, 1].
        eps: standard normal noise, like x0.
        t: int [B], in 1..T.
        variance: "small", "large" or "learned", as for `solvers.ddpm`; at t = 1 small is its value at t = 2
            (Nichol and Dhariwal 2021, arXiv:2102.09672).
    Returns:
        [B].
    Raises:
        ValueError: another variance.
    """
    check_variance(variance)
    cur, nxt = process(t), process(t - 1)
    x = q_sample(x0, eps, cur)
    answer = denoise(x, cur)
    x0_hat, frac = answer if variance == "learned" else (answer, float(variance == "large"))
    mean, _ = posterior(x0, x, cur, nxt)
    mean_hat, _ = posterior(x0_hat, x, cur, nxt)
    second = jnp.maximum(t, 2)
    _, small = posterior(x0, x, process(second), process(second - 1))
    large = cur.like(x).sigma * jnp.sqrt(gained(cur, nxt).reshape(small.shape))
    std_hat = small * (large / small) ** frac
    kl = normal_kl(mean, small, mean_hat, std_hat)
    nll = discretized_normal_nll(x0, mean_hat, std_hat)
    term = jnp.where((t == 1).reshape(small.shape), nll, kl)
    return jnp.mean(term, axis=range(1, x.ndim)) / log(2)
