"""The exact log-likelihood of a denoiser's probability-flow ODE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, pi
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_denoiser, check_inexact, is_traced
from jaxdiff.levels import Level, safe_sqrt, typed_levels
from jaxdiff.likelihood.bits import draw
from jaxdiff.noise import check_key, fold_in
from jaxdiff.processes import Process
from jaxdiff.sample import check_levels, check_pure_noise, x0_of
from jaxdiff.solvers.base import lerp, with_process
from jaxdiff.types import Denoiser

__all__ = ["LogLikelihood", "log_likelihood"]

# Runge-Kutta 4: each stage depends on the previous one only, so the four are one loop with one call of the network.
_NODES, _WEIGHTS = np.array([0, 0.5, 0.5, 1]), np.array([1, 2, 2, 1]) / 6
_CHUNK = 32  # directions of the exact trace evaluated at once


class LogLikelihood(NamedTuple):
    """The log-likelihood of data by the probability-flow ODE.

    Attributes:
        log_prob: [B], log-density of x at the grid's last level, in nats.
        standard_error: [B], of log_prob, from the estimated trace: 0 with the exact one, infinite (unknown) with one
            probe. It does not include the ODE solver's error: compare with a finer grid.
        latent: like x, the end of the ODE, at the grid's first level.
    """

    log_prob: Array
    standard_error: Array
    latent: Array


def log_likelihood(
    denoise: Denoiser,
    levels: Level,
    x: Array,
    key: Array | None = None,
    *,
    probes: int | None = None,
    process: Process | None = None,
    prior: Callable[[Array], Array] | None = None,
) -> LogLikelihood:
    """log p(x) by the change of variables along the probability-flow ODE (Song et al. 2020, appendix D.2).

    arXiv:2011.13456. One Runge-Kutta 4 step from each level of the grid to the noisier one before it, in the variables
    of dx = D dalpha + E dsigma (D the denoiser, E its noise), which are finite at alpha = 0 and straight at both ends.
    The divergence for N(0, I) data is integrated exactly, the difference from it by the stages. Reverse-mode gradients
    recompute each step.

    Args:
        denoise: (x_t, level) -> x0_hat; needs a forward-mode derivative.
        levels: fields [N + 1], noisiest first, the last with sigma > 0.
        x: [B, ...], data at the last level: its density is that of alpha x_0 + sigma eps there.
        key: for the estimated trace: one key, or [B] keys.
        probes: number of random sign vectors that estimate the trace of the denoiser's Jacobian (Hutchinson 1989),
            drawn anew in each step so that their errors average out along the path; None computes the trace exactly,
            with as many derivatives as an example has dimensions.
        process: gives the time of the levels between the grid's; None takes t, alpha and sigma there from a straight
            line, which is exact for EDM and Flow; see `solvers.base.with_process`.
        prior: x_T -> [B], log-density at the first level in nats. None is N(0, sigma_T^2 I), as in `noise.prior`.

    Returns:
        log_prob and standard_error [B], latent like x.

    Raises:
        ValueError: `levels` is not a grid, does not decrease or ends at sigma = 0; a prediction that is undefined at
            pure noise; probes < 1, or without a key.
    """
    _check_levels(denoise, levels, x)
    _check_probes(probes, key)
    levels = typed_levels(levels, x)
    nxt, cur = levels.at(slice(None, -1)), levels.at(slice(1, None))
    denoise, d = with_process(x0_of(denoise), process), x.size // x.shape[0]

    @jax.checkpoint
    def step(carry, i_cur_nxt):
        x, log_prob, var = carry
        i, cur, nxt = i_cur_nxt
        if probes is None or key is None:
            trace = partial(_exact_trace, d)
        else:
            trace = partial(_estimated_trace, _signs(fold_in(key, i), probes, x))
        x, divergence = _runge_kutta(partial(_field, denoise, trace, cur, nxt), x)  # divergence: [probes or 1, B]
        log_prob = log_prob + jnp.mean(divergence, axis=0) + 0.5 * d * (_log_var(nxt) - _log_var(cur))
        # The steps' probes are independent, so their variances add, and few probes suffice if there are many steps.
        return (x, log_prob, var if probes is None else var + _variance_of_mean(divergence)), None

    zero = jnp.zeros(x.shape[0], x.dtype)
    i = jnp.arange(cur.t.shape[0])
    (x, log_prob, var), _ = jax.lax.scan(step, (x, zero, zero), (i, cur, nxt), reverse=True)
    prior = partial(_log_normal, levels.sigma[0]) if prior is None else prior
    return LogLikelihood(log_prob + prior(x), safe_sqrt(var), x)


def _field(denoise, trace, cur: Level, nxt: Level, x: Array, w: Array) -> tuple[Array, Array]:
    """dx/dw on the chord, w from 0 (`cur`) to 1 (`nxt`), and its divergence beyond that of N(0, I) data."""
    level = lerp(cur, nxt, w)
    d_alpha, d_sigma = nxt.alpha - cur.alpha, nxt.sigma - cur.sigma
    x0, derivative = jax.linearize(lambda x: denoise(x, level), x)
    slope = d_alpha * x0 + d_sigma * (x - level.alpha * x0) / level.sigma
    of_normal = level.alpha / (jnp.square(level.alpha) + jnp.square(level.sigma))  # D = this x, for N(0, I) data
    excess = trace(derivative, x) - of_normal * (x.size // x.shape[0])
    return slope, (d_alpha - level.alpha * d_sigma / level.sigma) * excess


def _runge_kutta(field, x: Array) -> tuple[Array, Array]:
    def stage(carry, node_weight):
        slope, total = carry
        node, weight = node_weight
        slope, divergence = field(x + node * slope, node)
        return (slope, total + weight * slope), weight * divergence

    table = (jnp.asarray(_NODES, x.dtype), jnp.asarray(_WEIGHTS, x.dtype))
    (_, change), divergence = jax.lax.scan(stage, (jnp.zeros_like(x), jnp.zeros_like(x)), table)
    return x + change, jnp.sum(divergence, axis=0)


def _exact_trace(d: int, derivative, x: Array) -> Array:
    """[1, B]: the trace of each example's Jacobian; examples are independent, so one direction serves all of them."""

    def entry(i: Array) -> Array:
        along = jax.nn.one_hot(i, d, dtype=x.dtype).reshape(x.shape[1:])
        return derivative(jnp.broadcast_to(along, x.shape)).reshape(x.shape[0], d)[:, i]

    return jnp.sum(jax.lax.map(entry, jnp.arange(d), batch_size=min(d, _CHUNK)), axis=0)[None]


def _estimated_trace(signs: Array, derivative, x: Array) -> Array:
    """[probes, B]: v^T J v for each probe."""
    return jax.lax.map(lambda v: jnp.sum(v * derivative(v), axis=range(1, x.ndim)), signs)


def _signs(key: Array, n: int, x: Array) -> Array:
    return jax.vmap(lambda j: draw(jax.random.rademacher, fold_in(key, j), x.shape, x.dtype))(jnp.arange(n))


def _variance_of_mean(each: Array) -> Array:
    n = each.shape[0]
    return jnp.var(each, axis=0, ddof=1) / n if n > 1 else jnp.full_like(each[0], jnp.inf)


def _log_var(level: Level) -> Array:
    return jnp.log(jnp.square(level.alpha) + jnp.square(level.sigma))


def _log_normal(sigma: Array, x: Array) -> Array:
    """log-density of N(0, sigma^2 I), [B]."""
    return jnp.sum(-0.5 * jnp.square(x / sigma) - jnp.log(sigma) - 0.5 * log(2 * pi), axis=range(1, x.ndim))


def _check_levels(denoise, levels: Level, x: Array) -> None:
    check_denoiser("denoise", denoise)
    check_inexact("x", x)
    check_levels(levels)
    if not is_traced(levels) and np.asarray(levels.sigma)[-1] <= 0:
        raise ValueError(
            "clean data (sigma = 0) has no density that the ODE can reach: end the grid at a small sigma > 0, "
            "for example without its last level, levels.at(slice(None, -1))"
        )
    check_pure_noise(denoise, levels, x)


def _check_probes(probes: int | None, key: Array | None) -> None:
    if probes is None:
        return
    if not isinstance(probes, int | np.integer) or probes < 1:
        raise ValueError(f"probes is None for the exact trace, or an integer of at least 1, got {probes!r:.80}")
    if key is None:
        raise ValueError("the estimated trace draws its probes: pass a key, or probes=None for the exact trace")
    check_key(key)
