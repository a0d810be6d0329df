"""The variational bound in continuous time, for any process and a learned schedule."""

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
from jaxdiff.types import Denoiser

__all__ = ["ContinuousBound", "continuous_bound"]


class ContinuousBound(NamedTuple):
    """The variational bound in continuous time, [B] each, in bits per dimension.

    Attributes:
        total: an upper bound on -log p(x_0), up to the Monte-Carlo error of its parts.
        prior: KL of x_T from the noise that sampling starts with.
        diffusion: what the denoiser pays on the way.
        decoder: from the clean end to x_0.
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

    arXiv:2107.00630. The integral is a Monte-Carlo mean over t: the expectation depends on the schedule through its two
    ends only, and a schedule learned with the network changes the variance. The prior is N(0, sigma_T^2 I), which
    `noise.prior` draws. The decoder is q(x_end | x_0) normalized over x_0: over the data's values as in the paper,
    which asks no network and is sharp where sigma is below a bin; for continuous data over the line, a normal.

    Args:
        denoise: (x_t, level) -> x0_hat.
        process: any; gradients reach its numbers.
        x0: [B, ...], on `bins` equally spaced values from -1 to 1, or any with bins=None.
        key: one key, which spreads the batch's times evenly; or [B] keys, and an example depends on its own alone.
        start, end: the noisiest and the cleanest time, where sigma > 0; None is the process's own. May be traced.
        num_times: times an example, evenly spread.
        variable: in what times are uniform: "lam" = log(alpha / sigma), which varies little and needs alpha > 0 at the
            start; or "time", which varies as the schedule makes it: the one to learn a schedule by.
        bins: number of values of the data; None for a density, in bits per dimension too.

    Returns:
        the bound, in bits per dimension.

    Raises:
        ValueError: sigma = 0 at the end, alpha = 0 at the start with "lam", end not below start; a time that is neither
            given nor the process's own; data off its bins; samples or bins out of range; an untyped key.
    """
    check_denoiser("denoise", denoise)
    check_inexact("x0", x0)
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


def _time(process: Process, start, end, over: str, u: Array) -> tuple[Level, Array]:
    """The level at u in [0, 1) from the noisy end, and dSNR/du there."""
    u = u.astype(jnp.result_type(float))
    start, end = jnp.asarray(start, u.dtype), jnp.asarray(end, u.dtype)
    if over == "lam":
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


def _check(process: Process, start, end, samples: int, over: str) -> None:
    if not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"samples is an integer of at least 1, got {samples!r:.80}")
    if over not in ("time", "lam"):
        raise ValueError(f"over must be one of time, lam, got {over!r}")
    if is_traced(process, start, end):
        return
    with jax.ensure_compile_time_eval():  # under `jit` even constants would be traced
        first, last = (jax.tree.map(np.asarray, process(jnp.asarray(t, float))) for t in (start, end))
    if not end < start:
        raise ValueError(f"the times go from noise at start to data at end < start, got start = {start}, end = {end}")
    if last.sigma <= 0:
        raise ValueError(f"the bound is infinite at sigma = 0: set end to a time with sigma > 0, got end = {end}")
    if over == "lam" and first.alpha <= 0:
        raise ValueError(
            f'variable="lam" needs alpha > 0 at the start, got start = {start}: move it, or use variable="time"'
        )
