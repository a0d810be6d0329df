"""Denoising diffusion restoration: each singular direction by its own ratio of signal to noise (Kawar et al. 2022)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_called, check_number
from jaxdiff.guidance.base import per_example
from jaxdiff.inverse.base import check_operator, check_std, measure
from jaxdiff.inverse.operators.base import Operator, reciprocal
from jaxdiff.levels import Level, append_axes, from_x0, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, init_empty
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["ddrm"]


def ddrm(
    operator: Operator,
    y: Array,
    std: float | Array,
    *,
    eta: float | Array = 0.85,
    eta_b: float | Array = 1.0,
    noise_sampler: NoiseSampler = white,
) -> Solver:
    """DDIM in the singular directions of A, of which y has some (DDRM, Kawar et al. 2022, arXiv:2201.11793, eq. 7-8).

    With A = U S V^T, a direction of singular value s has the measurement u^T y / s, of noise std / s. Where that is
    less than the level's, the measurement is taken, with as much noise as is missing; where it is more, it takes the
    part of eps_hat; where s = 0, there is DDIM. All in x / alpha, so for any process. Without noise and with eta = 0 it
    is right for Gaussian data of one variance, in the limit of many steps; with another eta, what A does not see has
    (1 + (1 - eta^2)^1/2) / 2 of its variance there: 0.76 with the paper's 0.85.

    Args:
        operator: A with a decomposition: mask, average, blur, matrix, or Fourier of complex pictures and one coil.
        y: measurements, [B, *measured].
        std: standard deviation of their noise: a number or [B]; may be traced.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.
        eta_b: share of the measurement where it is better than the level, in [0, 1]; may be traced.
        noise_sampler: as for `solvers.ddim`.

    Returns:
        a solver of one evaluation a step. It has no order; without noise and with eta_b = 1, A x = y after the step to
        sigma = 0, but for singular values below eps^1/2 of the largest, which count as 0.

    Raises:
        ValueError: an operator without a decomposition, y or std as for `tmpd`, eta or eta_b outside [0, 1], a noise
            sampler that was not called.
    """
    check_operator(operator, y)
    check_std(std)
    check_number("eta", eta, low=0, high=1)
    check_number("eta_b", eta_b, low=0, high=1)
    check_called("noise_sampler", noise_sampler)
    if operator.spectral is None:
        raise ValueError(
            "ddrm needs an operator with a decomposition: mask, average, blur, matrix or fourier of one coil"
        )
    spectral = operator.spectral

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, eps = from_x0(denoise(x, cur), x, cur)
        away = operator.adjoint(y - measure(operator, y, x0))  # V S U^T of the residual
        each = per_example("std", std, x).reshape(-1)
        new, given = (jnp.asarray(share, x.dtype) for share in (eta, eta_b))
        old = jnp.sqrt(1 - jnp.square(new))

        def seen(s: Array) -> Array:
            """Singular values, and 0 for those by which rounding errors would be divided."""
            return jnp.where(s > jnp.sqrt(jnp.finfo(s.dtype).eps) * jnp.max(s), s, 0)

        def better(s: Array) -> tuple[Array, Array]:
            """alpha std / s, and where that is no more than sigma."""
            noise = nxt.alpha * append_axes(each, s.ndim) * reciprocal(s)
            return noise, (s > 0) & (noise <= nxt.sigma)

        # Factors of what is added to alpha x0, in each direction.
        def of_eps(s: Array) -> Array:
            return jnp.where(seen(s) > 0, 0, nxt.sigma * old)

        def of_difference(s: Array) -> Array:
            s = seen(s)
            noise, good = better(s)
            worse = nxt.sigma * old * reciprocal(jnp.where(good, 0, noise))
            return nxt.alpha * jnp.where(good, given, worse) * jnp.square(reciprocal(s))

        def of_noise(s: Array) -> Array:
            noise, good = better(seen(s))
            missing = safe_sqrt(jnp.maximum(jnp.square(nxt.sigma) - jnp.square(given * noise), 0))
            return jnp.where(good, missing, nxt.sigma * new)

        moved = spectral(of_eps, eps) + spectral(of_difference, away)
        drawn = spectral(of_noise, noise_sampler(key, x, cur, nxt))
        return nxt.alpha * x0 + moved + drawn, state

    return Solver(init_empty, step, order=None, stochastic=True)
