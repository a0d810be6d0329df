"""Score and stochastic differential equations: forward, reverse, probability flow, and Langevin dynamics.

dx = f x dt + g dw adds noise to data as t grows. With the score, processes with the same marginals run back from noise
to data, with any share tau of the noise: tau = 1 is the reverse SDE, tau = 0 the probability-flow ODE. Here they are
functions of (x, t), for analysis and for your own integrators; `solvers` step between levels and do not use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import levels
from jaxdiff.checks import check_denoiser, is_traced
from jaxdiff.levels import Level, append_axes, from_x0
from jaxdiff.noise import check_key, fold_in, normal_like
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process, to_float
from jaxdiff.types import Denoiser

__all__ = ["SDE", "forward", "jvp", "langevin", "probability_flow", "reverse", "score", "score_jvp"]


class SDE(NamedTuple):
    """dx = drift(x, t) dt + diffusion(t) dw.

    Attributes:
        drift: (x [B, ...], t: one for all or [B]) -> like x.
        diffusion: t -> like t.
    """

    drift: Callable[[Array, Array], Array]
    diffusion: Callable[[Array], Array]


def score(denoise: Denoiser) -> Callable[[Array, Level], Array]:
    """grad log p(x_t) of a denoiser: (alpha x0_hat - x) / sigma^2 (Tweedie; Song et al. 2020, arXiv:2011.13456).

    Args:
        denoise: (x_t, level) -> x0_hat.

    Returns:
        (x_t, level) -> score, like x; the level has sigma > 0.
    """
    return lambda x, level: levels.score(from_x0(denoise(x, level), x, level), level)


def jvp(denoise: Denoiser, x: Array, level: Level, v: Array) -> tuple[Array, Array]:
    """x0_hat and J v, with J its Jacobian in x: (sigma^2 / alpha) J is the covariance of x_0 given x_t.

    Args:
        denoise: (x_t, level) -> x0_hat.
        x: x_t, [B, ...].
        level: scalar, or one level per example ([B]).
        v: a direction for each example, like x.

    Returns:
        (x0_hat, J v), like x.
    """
    return jax.jvp(lambda x: denoise(x, level), (x,), (v,))


def score_jvp(denoise: Denoiser, x: Array, level: Level, v: Array) -> tuple[Array, Array]:
    """The score and its derivative along v, the Hessian of log p(x_t) times v: (alpha J v - v) / sigma^2.

    Args:
        denoise, x, level, v: as for `jvp`; the level has sigma > 0.

    Returns:
        (score, H v), like x.
    """
    return jax.jvp(lambda x: score(denoise)(x, level), (x,), (v,))


def forward(process: Process) -> SDE:
    """The forward SDE dx = f x dt + g dw (Song et al. 2020, eq. 5).

    Args:
        process: any with `sde`; t lies strictly between its ends.

    Returns:
        drift f(t) x and diffusion g(t).
    """
    check_process(process, "sde")
    return SDE(lambda x, t: _like(process.sde(t)[0], x) * x, lambda t: process.sde(t)[1])


def reverse(process: Process, denoise: Denoiser, *, tau: float | Array = 1.0) -> SDE:
    """The reverse SDE with the same marginals: drift f x - (1 + tau^2) / 2 g^2 score, diffusion tau g.

    Song et al. 2020, eq. 6 (tau = 1) and 13 (tau = 0); in between Zhang and Chen 2022 (arXiv:2204.13902). Integrate it
    with dt < 0. It is the probability-flow ODE plus Langevin dynamics of share tau^2.

    Args:
        process: any with `sde`; t lies strictly between its ends.
        denoise: (x_t, level) -> x0_hat.
        tau: share of the noise, >= 0; may be traced.

    Returns:
        drift and diffusion.

    Raises:
        ValueError: a concrete tau below 0.
    """
    check_process(process, "sde")
    check_denoiser("denoise", denoise)
    if not is_traced(tau) and not np.all(np.asarray(tau) >= 0):
        raise ValueError(f"tau, the share of the noise, is at least 0, got {tau}")
    flow = probability_flow(process, denoise)

    def drift(x: Array, t: Array) -> Array:
        g = _like(tau * process.sde(t)[1], x)
        return flow(x, t) - 0.5 * jnp.square(g) * score(denoise)(x, process(t))

    return SDE(drift, lambda t: tau * process.sde(t)[1])


def probability_flow(process: Process, denoise: Denoiser) -> Callable[[Array, Array], Array]:
    """dx/dt of the ODE with the marginals of the SDE, f x - g^2 / 2 score (Song et al. 2020, eq. 13).

    Computed as alpha' x0_hat + sigma' eps_hat, which is equal and stays finite at alpha = 0, where f and g do not.

    Args:
        process: any.
        denoise: (x_t, level) -> x0_hat.

    Returns:
        (x, t) -> dx/dt, like x; t is one for all or [B].
    """

    def drift(x: Array, t: Array) -> Array:
        t = to_float(t)
        level, slope = jax.jvp(lambda t: process(t), (t,), (jnp.ones_like(t),))
        ends, slope = from_x0(denoise(x, level), x, level), slope.expand_to(x)
        return slope.alpha * ends.x0 + slope.sigma * ends.eps

    return drift


def langevin(score: Callable[[Array], Array], x: Array, key: Array, *, step_size: float | Array, steps: int) -> Array:
    """Unadjusted Langevin dynamics at a fixed level, x + e / 2 score + sqrt(e) z, e = step_size, in one scan.

    Song and Ermon 2019 (arXiv:1907.05600), eq. 4; its distribution tends to that of the score as `steps` grows and
    `step_size` shrinks.

    Args:
        score: x -> grad log p, e.g. `lambda x: sde.score(denoise)(x, level)`.
        x: the start, [B, ...].
        key: one key, or [B] keys.
        step_size: e, a number or [B]; may be traced.
        steps: number of steps.

    Returns:
        x after the steps.

    Raises:
        ValueError: steps < 0, a concrete step_size that is not positive, or an untyped key.
    """
    check_key(key)
    if not isinstance(steps, int | np.integer) or steps < 0:
        raise ValueError(f"steps is an integer of at least 0, got {steps!r:.80}")
    if not is_traced(step_size) and not np.all(np.asarray(step_size) > 0):
        raise ValueError(f"step_size must be positive, got {step_size}")
    size = _like(step_size, x)

    def body(x: Array, i: Array):
        return x + 0.5 * size * score(x) + jnp.sqrt(size) * normal_like(fold_in(key, i), x), None

    return jax.lax.scan(body, x, jnp.arange(steps))[0]


def _like(field: float | Array, x: Array) -> Array:
    """A number, or one per example, in the type of x and aligned with its leading axis."""
    return append_axes(jnp.asarray(field, x.dtype), x.ndim)
