"""The twisted diffusion sampler: sequential Monte Carlo, whose weights make up for what guidance is off by."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.inverse.base import check_operator, check_std, jacobian, measure, tweedie_factor, variance_of
from jaxdiff.inverse.operators.base import Operator
from jaxdiff.inverse.posterior import spread
from jaxdiff.levels import Level, append_axes, posterior
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.solvers.base import Solver
from jaxdiff.types import Denoiser

__all__ = ["Particles", "twisted"]


class Particles(NamedTuple):
    """The state of `twisted`.

    Attributes:
        log_weights: [B, K], without the twist of the present level; 0 at the end.
        log_z: [B], log p(y) of what was resampled so far: at the end the estimate of the evidence.
    """

    log_weights: Array
    log_z: Array


def twisted(operator: Operator, y: Array, std: float | Array, *, prior_std: float | Array = 1.0) -> Solver:
    """Twisted sequential Monte Carlo: exact for any data as the number of particles grows (Wu et al. 2023).

    arXiv:2306.17775. K particles an example, on an axis of their own, take ancestral steps with the denoiser of `pigdm`
    and weights by the twist log N(y; A x0_hat, r^2 A A^T + std^2 I), whose gradient that is; systematic resampling
    where the effective sample size falls below K / 2, and at the end. The last step is not guided.

    Args:
        operator: A.
        y: measurements, [B, *measured].
        std: standard deviation of their noise, positive: a number or [B]; may be traced.
        prior_std: that of the data, for r^2 as for `pigdm`; 0 is the paper's twist, that of `dps`. May be traced.

    Returns:
        a solver for x [B, K, ...] and grids that end at sigma = 0, with one evaluation and backward pass a step.
        Examples do not interact, particles do. The state is `Particles`: `sample_state` gives log_z, an estimate of log
        p(y) under the model. It has no order.

    Raises:
        ValueError: std <= 0, prior_std < 0, or y as for `tmpd`.
    """
    check_operator(operator, y)
    check_std(std, positive=True)
    check_number("prior_std", prior_std, low=0)

    def evaluate(denoise: Denoiser, x: Array, level: Level) -> tuple[Array, Array, Array]:
        """x0_hat, guided x0_hat and the twist [B], for one particle of each example."""
        x0, _, pull = jacobian(denoise, x, level)
        c, d = spread(y, level, 1.0, prior_std)
        residual = y - measure(operator, y, x0)
        w = operator.solve(residual, c / d, variance_of(std, y))
        correction = tweedie_factor(x, level) * pull(operator.adjoint(w))
        return x0, x0 + correction, -0.5 * _sum((jnp.conj(residual) * w).real, 1)

    def likelihood(x0: Array) -> Array:
        """log N(y; A x_0, std^2 I) for one particle of each example, [B]."""
        variance = jnp.square(jnp.asarray(std, x0.dtype))
        residual = y - measure(operator, y, x0)
        each = jnp.ones_like(y.real) if operator.measured is None else operator.measured.astype(x0.dtype)
        each = each if each.ndim == y.ndim else each[None]
        count = (2 if jnp.iscomplexobj(y) else 1) * _sum(jnp.broadcast_to(each, y.shape), 1)
        return -0.5 * (
            _sum((jnp.conj(residual) * residual).real, 1) / variance + count * jnp.log(2 * jnp.pi * variance)
        )

    def step(denoise: Denoiser, key: Array, x: Array, state: Particles, cur: Level, nxt: Level):
        last = nxt.sigma == 0
        x0, guided, twist = jax.vmap(lambda x: evaluate(denoise, x, cur), in_axes=1, out_axes=1)(x)
        (x, x0, guided, twist), state = _resample(fold_in(key, 0), (x, x0, guided, twist), twist, state)
        (plain, noise_std), (mean, _) = (posterior(clean, x, cur, nxt) for clean in (x0, guided))
        z = normal_like(fold_in(key, 1), x)
        # log p(x_s | x_t) - log p(x_s | x_t, y) of x_s = mean + std z.
        off = (mean - plain) / jnp.where(last, 1, noise_std)
        ratio = jnp.where(last, 0, -_sum(off * (0.5 * off + z), 2))
        moved = jnp.where(last, x0, mean + noise_std * z)
        state = state._replace(log_weights=state.log_weights + ratio - twist)
        final = jax.vmap(likelihood, in_axes=1, out_axes=1)(moved)
        (chosen,), end = _resample(fold_in(key, 2), (moved,), final, state, always=True)
        return jax.tree.map(lambda a, b: jnp.where(last, a, b), (chosen, end), (moved, state))

    def init(x: Array) -> Particles:
        return Particles(jnp.zeros(x.shape[:2], x.dtype), jnp.zeros(x.shape[:1], x.dtype))

    return Solver(init, step, order=None, stochastic=True, particles=True)


def _resample(key: Array, parts: tuple[Array, ...], twist: Array, state: Particles, *, always: bool = False):
    """Draw particles systematically where weights are uneven; the weights of the state then have the twist."""
    k = twist.shape[1]
    weights = state.log_weights + twist
    shares = jax.nn.softmax(weights, axis=1)
    uneven = jnp.full(twist.shape[:1], True) if always else 1 / jnp.sum(jnp.square(shares), axis=1) < k / 2
    # One key, or one an example.
    u = jax.random.uniform(key, twist.shape[:1], twist.dtype) if key.ndim == 0 else jax.vmap(jax.random.uniform)(key)
    points = (jnp.arange(k, dtype=twist.dtype)[None] + u.astype(twist.dtype)[:, None]) / k
    drawn = jnp.minimum(jax.vmap(jnp.searchsorted)(jnp.cumsum(shares, axis=1), points), k - 1)
    ancestors = jnp.where(uneven[:, None], drawn, jnp.arange(k)[None])
    take = lambda a: jnp.take_along_axis(a, append_axes(ancestors, a.ndim), axis=1)  # noqa: E731
    log_mean = jax.nn.logsumexp(weights, axis=1) - jnp.log(jnp.asarray(k, twist.dtype))
    return tuple(map(take, parts)), Particles(
        jnp.where(uneven[:, None], 0, weights), state.log_z + jnp.where(uneven, log_mean, 0)
    )


def _sum(x: Array, batch: int) -> Array:
    """The sum over all axes but the first `batch`."""
    return jnp.sum(x, axis=tuple(range(batch, x.ndim)))
