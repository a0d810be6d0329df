"""The variational bound of a discrete-time DDPM, and its terms."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from jaxdiff.checks import check_inexact
from jaxdiff.levels import (
    added_variance,
    check_variance,
    posterior,
    q_mean_std,
    q_sample,
    with_learned_variance,
)
from jaxdiff.likelihood.bits import check_binned
from jaxdiff.noise import check_key, fold_in, normal_like
from jaxdiff.processes import Discrete, Process
from jaxdiff.types import Denoiser

__all__ = ["Bound", "discretized_normal_nll", "normal_kl", "variational_bound", "variational_term"]


class Bound(NamedTuple):
    """The variational bound of a DDPM, in bits per dimension.

    Attributes:
        total: [B], an upper bound on -log p(x_0), up to the Monte Carlo error of its terms.
        prior: [B], L_T.
        terms: [B, T], L_0 (the decoder) to L_{T-1}.
    """

    total: Array
    prior: Array
    terms: Array


def normal_kl(mean: Array, std: Array, mean_hat: Array, std_hat: Array) -> Array:
    """KL(N(mean, std^2) || N(mean_hat, std_hat^2)), elementwise, in nats."""
    ratio = std / std_hat
    return -jnp.log(ratio) + 0.5 * (jnp.square(ratio) + jnp.square((mean - mean_hat) / std_hat) - 1)


def discretized_normal_nll(x: Array, mean: Array, std: Array, *, bins: int = 256) -> Array:
    """-log of a normal's mass in the bin of x, elementwise, in nats (Ho et al. 2020, arXiv:2006.11239, eq. 13).

    Args:
        x: data on `bins` equally spaced values from -1 to 1.
        mean, std: of the normal; broadcast against x.
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
    denoise: Denoiser, process: Discrete, x0: Array, eps: Array, t: Array, *, variance: str = "learned", bins: int = 256
) -> Array:
    """L_{t-1} of the variational bound of a DDPM, in bits per dimension (Ho et al. 2020, eq. 5).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and for t = 1 the decoder's -log p(x_0 | x_1). The bound is the sum
    over t = 1..T plus the prior's term.

    Args:
        denoise: (x, level) -> x0_hat, or (x0_hat, frac) with learned variance.
        process: the beta table.
        x0: [B, ...], on `bins` equally spaced values from -1 to 1.
        eps: standard normal noise, like x0.
        t: integer in 1..T, a scalar or [B].
        variance: "small", "large" or "learned", as for `solvers.ddpm`. At t = 1, where the posterior's variance is 0,
            "small" and "large" are the posterior's at t = 2, for a better decoder (as in the code of Ho et al. 2020),
            and "learned" lies between that and beta_1 (Nichol and Dhariwal 2021, arXiv:2102.09672).
        bins: number of values of the data.

    Returns:
        [B].

    Raises:
        ValueError: `variance` is not one of these.
    """
    check_variance(variance)
    t = jnp.asarray(t)
    cur, nxt = process(t), process(t - 1)
    x = q_sample(x0, eps, cur)
    output, decoder = denoise(x, cur), (t == 1).reshape(cur.expand_to(x).sigma.shape)
    large_share = jnp.where(decoder, 0.0, float(variance == "large"))
    if variance == "learned":
        x0_hat, frac = with_learned_variance(output)
    else:
        x0_hat, frac = output[0] if isinstance(output, tuple) else output, large_share
    mean, _ = posterior(x0, x, cur, nxt)
    mean_hat, _ = posterior(x0_hat, x, cur, nxt)
    second = jnp.maximum(t, 2)
    _, small = posterior(x0, x, process(second), process(second - 1))
    large = cur.expand_to(x).sigma * jnp.sqrt(added_variance(cur, nxt).reshape(small.shape))
    std_hat = small * (large / small) ** frac
    kl = normal_kl(mean, small, mean_hat, std_hat)
    nll = discretized_normal_nll(x0, mean_hat, std_hat, bins=bins)
    term = jnp.where(decoder, nll, kl)
    return jnp.mean(term, axis=range(1, x.ndim)) / log(2)


def variational_bound(
    denoise: Denoiser, process: Discrete, x0: Array, key: Array, *, variance: str = "learned", bins: int = 256
) -> Bound:
    """The variational bound of a DDPM, L_T + ... + L_1 + L_0, with one x_t for each t (Ho et al. 2020, eq. 5).

    L_T = KL(q(x_T | x_0) || N(0, I)), L_{t-1} as in `variational_term`. One scan over t, whose reverse-mode gradient
    recomputes each term: neither compile time nor memory grows with T.

    Args:
        denoise: (x, level) -> x0_hat, or (x0_hat, frac) with learned variance.
        process: the beta table.
        x0: [B, ...], on `bins` equally spaced values from -1 to 1.
        key: one key, or [B] keys.
        variance: "small", "large" or "learned", as for `solvers.ddpm`.
        bins: number of values of the data.

    Returns:
        the bound, in bits per dimension.

    Raises:
        ValueError: a process without a table of at least two betas; an unknown variance; bins < 2; data off its bins
            or of an integer dtype; an untyped key.
    """
    check_table(process)
    check_variance(variance)
    check_inexact("x0", x0)
    check_binned(x0, bins)
    check_key(key)

    @jax.checkpoint
    def term(_, t: Array):
        eps = normal_like(fold_in(key, t), x0)
        return None, variational_term(denoise, process, x0, eps, t, variance=variance, bins=bins)

    _, terms = jax.lax.scan(term, None, jnp.arange(1, process.T + 1))
    mean, std = q_mean_std(x0, process(jnp.asarray(process.T)))
    kl = normal_kl(mean, std, jnp.zeros_like(std), jnp.ones_like(std))
    prior = jnp.mean(kl, axis=range(1, x0.ndim)) / log(2)
    return Bound(prior + jnp.sum(terms, axis=0), prior, terms.T)


def check_table(process: Process) -> None:
    """Raise ValueError unless the process is a table of at least two betas."""
    if not isinstance(process, Discrete) or process.T < 2:
        raise ValueError(f"the bound by steps needs a table of at least two betas (processes.Discrete), got {process}")
