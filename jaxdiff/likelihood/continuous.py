"""The variational bound in continuous time, for any process, also a learned one."""

from __future__ import annotations

from math import e, log, pi
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_denoiser, check_inexact, is_traced
from jaxdiff.levels import Level, q_sample
from jaxdiff.likelihood.bits import check_binned, draw
from jaxdiff.noise import check_key, fold_in, normal_like
from jaxdiff.processes import Process
from jaxdiff.processes.base import time_range
from jaxdiff.sample import x0_of
from jaxdiff.types import Denoiser

__all__ = ["ContinuousBound", "continuous_bound"]


class ContinuousBound(NamedTuple):
    """The variational bound in continuous time, in bits per dimension; each field [B].

    Attributes:
        total: an upper bound on -log p(x_0), up to the Monte Carlo error of its terms.
        prior: KL(q(x_T | x_0) || p(x_T)), of the noise that sampling starts with.
        diffusion: the integral of the denoiser's error.
        decoder: -log p(x_0 | x_end).
    """

    total: Array
    prior: Array
    diffusion: Array
    decoder: Array


def continuous_bound(
    denoise: Denoiser,
    process: Process,
    x0: Array,
    key: Array,
    *,
    start: float | Array | None = None,
    end: float | Array | None = None,
    num_times: int = 1,
    variable: str = "lam",
    bins: int | None = 256,
) -> ContinuousBound:
    """KL(q(x_T | x_0) || p(x_T)) - 1/2 int SNR'(t) E|x_0 - x0_hat|^2 dt - E log p(x_0 | x_end) (Kingma et al. 2021).

    arXiv:2107.00630. The integral is a Monte Carlo mean over t: its expectation depends on the two ends of the schedule
    only, its variance on the whole schedule, which may be learned. The prior is N(0, sigma_T^2 I), as in `noise.prior`.
    The decoder is q(x_end | x_0) normalized over x_0: over the data's values as in the paper, which needs no network
    and is sharp if sigma is smaller than a bin; over the real line, a normal, for continuous data.

    Args:
        denoise: (x_t, level) -> x0_hat.
        process: any; its numbers may be differentiated.
        x0: [B, ...], on `bins` equally spaced values from -1 to 1, or any values if bins is None.
        key: one key, for times that are evenly spread over the batch; or [B] keys, so that each example depends on its
            own key only.
        start, end: the noisiest and the cleanest time, where sigma > 0; None is the process's own. May be traced.
        num_times: number of times per example, evenly spread.
        variable: where times are uniform: "lam", log(alpha / sigma), which has low variance and needs alpha > 0 at the
            start; or "time", whose variance depends on the schedule and can train it.
        bins: number of values of the data; None for continuous data, and a bound on the density.

    Returns:
        the bound, in bits per dimension.

    Raises:
        ValueError: sigma = 0 at the end, alpha = 0 at the start with "lam", end not below start; no start or end for a
            process without one; data off its bins; num_times or bins out of range; an untyped key; a
            denoiser that returns a learned variance, or x0_hat of another shape than x.
    """
    check_denoiser("denoise", denoise)
    check_inexact("x0", x0)
    denoise = x0_of(denoise)
    start, end = time_range(process, start, end)
    _check(process, start, end, num_times, variable)
    check_key(key, x0.shape[:1])
    if bins is not None:
        check_binned(x0, bins)
    first, last = (_level(process, jnp.asarray(t, float), x0.dtype) for t in (start, end))
    offset = _offsets(key, x0)

    @jax.checkpoint
    def sampled(_, i: Array):
        u = (offset + i.astype(x0.dtype) / num_times) % 1
        level, slope = _time(process, start, end, variable, u)
        level, slope = jax.tree.map(lambda field: field.astype(x0.dtype), (level, slope))
        x = q_sample(x0, normal_like(fold_in(key, i + 1), x0), level)
        return None, 0.5 * slope * _mean(jnp.square(x0 - denoise(x, level)))

    _, terms = jax.lax.scan(sampled, None, jnp.arange(num_times))
    diffusion = jnp.mean(terms, axis=0)
    prior = 0.5 * first.snr * _mean(jnp.square(x0))
    s = last.sigma / last.alpha
    decoder = _decoder(x0, normal_like(fold_in(key, num_times + 1), x0), s, bins)
    prior, diffusion, decoder = (nats / log(2) for nats in (prior, diffusion, decoder))
    return ContinuousBound(prior + diffusion + decoder, prior, diffusion, decoder)


def _time(process: Process, start, end, variable: str, u: Array) -> tuple[Level, Array]:
    """The level at u in [0, 1) from the noisy end, and dSNR/du there."""
    u = u.astype(jnp.result_type(float))
    start, end = jnp.asarray(start, u.dtype), jnp.asarray(end, u.dtype)
    if variable == "lam":
        first, last = process(start).lam, process(end).lam
        lam = first + (last - first) * u
        return process(process.time(lam)), 2 * (last - first) * jnp.exp(2 * lam)
    t = start + (end - start) * u
    snr_of = lambda t: process(t).snr  # noqa: E731
    _, slope = jax.jvp(snr_of, (t,), (jnp.ones_like(t),))
    return process(t), (end - start) * slope


def _offsets(key: Array, x0: Array) -> Array:
    """[B] in [0, 1): with one key a single offset of B even places (Kingma et al. 2021, appendix I.1)."""
    B = x0.shape[0]
    key = fold_in(key, 0)
    if key.ndim == 0:
        return jax.random.uniform(key, dtype=x0.dtype) + jnp.arange(B, dtype=x0.dtype) / B
    return draw(jax.random.uniform, key, (B,), x0.dtype)


def _decoder(x0: Array, eps: Array, s: Array, bins: int | None) -> Array:
    """-log of q(x | x_0) over its sum or integral over x_0, in nats, where x / alpha = x_0 + s eps."""
    if bins is None:
        return jnp.broadcast_to(jnp.log(s) + 0.5 * log(2 * pi * e), x0.shape[:1])  # exact in expectation over eps

    values = jnp.linspace(-1, 1, bins, dtype=x0.dtype).reshape((1,) * x0.ndim + (-1,))

    @jax.checkpoint  # else `bins` numbers for each of x0's would be kept for the gradient
    def nll(x0: Array, eps: Array, s: Array) -> Array:
        away = (x0[..., None] - values) / s  # |x/alpha - value|^2 - |x/alpha - x0|^2 = s^2 away^2 + 2 s^2 eps away
        return _mean(jax.nn.logsumexp(-(0.5 * jnp.square(away) + eps[..., None] * away), axis=-1))

    return nll(x0, eps, s)


def _level(process: Process, t: Array, dtype) -> Level:
    return jax.tree.map(lambda field: field.astype(dtype), process(t))


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=range(1, x.ndim))


def _check(process: Process, start, end, num_times: int, variable: str) -> None:
    if not isinstance(num_times, int | np.integer) or num_times < 1:
        raise ValueError(f"num_times must be an integer of at least 1, got {num_times!r:.80}")
    if variable not in ("time", "lam"):
        raise ValueError(f"variable must be lam or time, got {variable!r}")
    if is_traced(process, start, end):
        return
    with jax.ensure_compile_time_eval():  # under `jit` even constants would be traced
        first, last = (jax.tree.map(np.asarray, process(jnp.asarray(t, float))) for t in (start, end))
    if not end < start:
        raise ValueError(f"the times go from noise at start to data at end < start, got start = {start}, end = {end}")
    if last.sigma <= 0:
        raise ValueError(f"the bound is infinite at sigma = 0: set end to a time with sigma > 0, got end = {end}")
    if variable == "lam" and first.alpha <= 0:
        raise ValueError(
            f'variable="lam" needs alpha > 0 at the start, got start = {start}: move it, or use variable="time"'
        )
