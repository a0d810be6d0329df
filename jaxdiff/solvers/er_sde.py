"""ER-SDE-Solver (Cui et al. 2023): the extended reverse-time SDE, with x0_hat a polynomial in sigma / alpha."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.adams import weights
from jaxdiff.solvers.base import Solver, check_lower_order_final, check_order, lambda_step, prepend, steps_left
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["er_noise_scale", "er_sde"]

_X, _W = np.polynomial.legendre.leggauss(16)  # for a smooth function of lam: exact to rounding for steps of any size
_FAR = 20.0  # replaces the infinite |lam| of pure noise and clean data


def er_noise_scale(rho: Array) -> Array:
    """log(phi(rho) / rho) for the paper's noise scale function phi(rho) = rho (exp(rho^0.3) + 10)."""
    return jnp.logaddexp(rho**0.3, jnp.log(jnp.asarray(10, rho.dtype)))


@factory
def er_sde(
    order: int = 3, log_scale: Callable[[Array], Array] = er_noise_scale, s_noise: float | Array = 1.0, *,
    noise_sampler: NoiseSampler = white, lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """ER-SDE-Solver-1, 2 and 3 (Cui et al. 2023, arXiv:2309.06169), for any process by rho = sigma / alpha.

    With y = x / alpha, y_s = r y_t + int x0_hat d(phi(rho_s) / phi(rho)) + sqrt(rho_s^2 - r^2 rho_t^2) z, where
    r = phi(rho_s) / phi(rho_t). The paper expands x0_hat at rho_t with backward differences for derivatives. Here
    x0_hat is the polynomial through the same evaluations, which differs by a term of the next order and keeps order 3
    for the ODE.

    Args:
        order: number of evaluations in the polynomial, 1 to 3.
        log_scale: rho -> log(phi(rho) / rho), with phi the paper's noise scale function; must not decrease with rho. 0
            is the ODE, log(rho) the reverse SDE.
        s_noise: factor of the noise's standard deviation; may be traced.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of weak order 2 (1 for order 1) with one evaluation per step; the first steps are of a lower order, and
        the step to sigma = 0 of order 1.

    Raises:
        ValueError: order is not 1, 2 or 3; `lower_order_final` is no grid.
    """
    check_order("er_sde", order, 1, 2, 3)
    check_lower_order_final(lower_order_final)

    def init(x: Array) -> tuple[Array, Array]:
        return jnp.zeros((order - 1, *x.shape), x.dtype), jnp.full(order - 1, -jnp.inf, x.dtype)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        past, lams = state
        x0 = denoise(x, cur)
        h, finite = lambda_step(cur, nxt)
        scale = lambda lam: log_scale(jnp.exp(-jnp.clip(lam, -_FAR, _FAR)))  # noqa: E731
        # r = exp(-h + log_kept).
        log_kept = scale(nxt.lam) - scale(cur.lam)
        new = nxt.sigma / cur.sigma * jnp.exp(log_kept) * x - nxt.alpha * jnp.expm1(cur.lam - nxt.lam + log_kept) * x0
        if order > 1:
            lam = jnp.where(finite, cur.lam, 0)
            allowed = jnp.arange(order - 1, dtype=jnp.int32) < steps_left(lower_order_final, cur) - 1
            usable = jnp.isfinite(lams) & finite & allowed
            # (rho - rho_t) / (rho_s - rho_t) of past levels; those that are not usable get other, distinct values.
            v = jnp.expm1(lam - jnp.where(usable, lams, lam)) / jnp.expm1(-h)
            v = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.where(usable, v, 2 + jnp.arange(order - 1, dtype=x.dtype))])
            share = weights(v, jnp.concatenate([jnp.array([True]), usable]), _moments(scale, lam, h, order))
            for k in range(order - 1):
                new = new + nxt.alpha * share[k + 1] * (past[k] - x0)
            state = prepend(past, x0), prepend(lams, cur.lam)
        drawn = nxt.sigma * safe_sqrt(jnp.maximum(-jnp.expm1(2 * log_kept), 0))
        return new + jnp.asarray(s_noise, x.dtype) * drawn * noise_sampler(key, x, cur, nxt), state

    return Solver(init, step, order=min(order, 2), stochastic=True)


def _moments(scale: Callable[[Array], Array], lam: Array, h: Array, n: int) -> Array:
    """int v^j dE for j < n, where E = phi(rho_s) / phi(rho) rises to 1 as v = (rho - rho_t) / (rho_s - rho_t) does."""
    along = jnp.asarray(0.5 * (1 + _X), h.dtype) * h  # lam - lam_t
    v = jnp.expm1(-along) / jnp.expm1(-h)
    dv = jnp.asarray(0.5 * _W, h.dtype) * h * jnp.exp(-along) / -jnp.expm1(-h)
    end = scale(lam + h)
    rest = -jnp.expm1(along - h - scale(lam + along) + end)  # 1 - E, to integrate E dv without cancellation
    first = -jnp.expm1(-h - scale(lam) + end)
    return jnp.stack([first] + [j * jnp.sum(v ** (j - 1) * rest * dv) for j in range(1, n)])
