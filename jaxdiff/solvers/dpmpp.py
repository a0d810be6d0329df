"""DPM-Solver++ (Lu et al. 2022): exponential integrators of x0_hat in lam, for the ODE and the SDE."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, white
from jaxdiff.processes import Process
from jaxdiff.solvers.adams import adams
from jaxdiff.solvers.ancestral import ancestral_step, check_eta
from jaxdiff.solvers.base import (
    Solver,
    exponential_step,
    init_empty,
    lambda_step,
    safe_level_at_lambda,
    select_level,
    with_process,
)
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_sde"]


@factory
def dpmpp_2s(process: Process | None = None) -> Solver:
    """DPM-Solver++(2S), the singlestep method of order 2 (Lu et al. 2022, arXiv:2211.01095, algorithm 1; r = 1/2).

    Args:
        process: gives the time of the inner point. Without it that time is interpolated: exact for EDM and Flow, and
            where the network's noise input is lam; elsewhere it is off by O(h^2).

    Returns:
        a solver of order 2 with two evaluations per step; the steps from pure noise and to sigma = 0 are of order 1.
    """

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        return _halfway(denoise, process, x, cur, nxt, nxt), state

    return Solver(init_empty, step, order=2, nfe=2)


@factory
def dpmpp_2s_ancestral(
    eta: float | Array = 1.0,
    s_noise: float | Array = 1.0,
    process: Process | None = None,
    *,
    noise_sampler: NoiseSampler = white,
) -> Solver:
    """`dpmpp_2s` to sigma_down, then noise up to sigma (k-diffusion's `sample_dpmpp_2s_ancestral`).

    Args:
        eta: share of the posterior's noise, in [0, 1]; may be traced. At 0 it is `dpmpp_2s`, and a plain 0 draws no
            noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        process: gives the time of the inner point, as for `dpmpp_2s`.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of weak order 2 with two evaluations per step, and of order 1 from pure noise and to sigma = 0.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    deterministic = check_eta(eta)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        down, up = ancestral_step(eta, x, cur, nxt)
        x = _halfway(denoise, process, x, cur, nxt, down)
        return x if deterministic else x + jnp.asarray(s_noise, x.dtype) * up * noise_sampler(key, x, cur, nxt), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=not deterministic)


@factory
def dpmpp_sde(
    eta: float | Array = 1.0, s_noise: float | Array = 1.0, r: float | Array = 0.5, process: Process | None = None, *,
    noise_sampler: NoiseSampler = white,
) -> Solver:  # fmt: skip
    """DPM-Solver++ for the SDE, singlestep, with noise at the inner point too (k-diffusion's `sample_dpmpp_sde`).

    Args:
        eta: share of the posterior's noise, in [0, 1]; may be traced. At 0 and r = 1/2 it is `dpmpp_2s`, and a plain 0
            draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        r: position of the inner point in lam, in (0, 1); may be traced.
        process: gives the time of the inner point, as for `dpmpp_2s`.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.

    Returns:
        a solver of weak order 2 with two evaluations per step, and of order 1 from pure noise and to sigma = 0.

    Raises:
        ValueError: eta is a number outside [0, 1], r one outside (0, 1).
    """
    deterministic = check_eta(eta)
    if isinstance(r, (int, float)) and not 0 < r < 1:
        raise ValueError(f"r must lie between 0 and 1, got {r}")

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        h, finite = lambda_step(cur, nxt)
        before, after = jnp.asarray(r, x.dtype) * h, (1 - jnp.asarray(r, x.dtype)) * h
        mid = safe_level_at_lambda(cur, nxt, cur.lam + before, finite)
        # If h is infinite, the first stage is the full step.
        target = select_level(finite, nxt, mid)
        x0 = denoise(x, cur)
        down, up = ancestral_step(eta, x, cur, target)
        predicted = exponential_step(x, x0, cur, down)
        if not deterministic:
            z = noise_sampler(key, x, cur, target)
            predicted = predicted + jnp.asarray(s_noise, x.dtype) * up * z
        x0_mid = with_process(denoise, process)(predicted, mid)
        down, up = ancestral_step(eta, x, cur, nxt)
        new = exponential_step(x, x0 + 0.5 / jnp.asarray(r, x.dtype) * (x0_mid - x0), cur, down)
        if not deterministic:
            # W(SNR_s) - W(SNR_t) in units of its standard deviation: the increments before and after the inner point.
            rest = jnp.sqrt(jnp.expm1(-2 * after) / jnp.expm1(-2 * h))
            kept = jnp.exp(-after) * jnp.sqrt(jnp.expm1(-2 * before) / jnp.expm1(-2 * h))
            z = kept * z + rest * noise_sampler(fold_in(key, 1), x, target, nxt)
            new = new + jnp.asarray(s_noise, x.dtype) * up * z
        return jnp.where(finite, new, predicted), state

    return Solver(init_empty, step, order=2, nfe=2, stochastic=not deterministic)


@factory
def dpmpp_2m(*, lower_order_final: Level | None = None) -> Solver:
    """DPM-Solver++(2M), the multistep method of order 2 (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    Args:
        lower_order_final: the grid passed to `sample`, fields [N + 1]; may be traced. Limits the order of its last
            steps to ..., 3, 2, 1, which helps if few steps end above sigma = 0. None keeps the order.

    Returns:
        a solver of order 2 with one evaluation per step. The first step, the step after pure noise (lam = -inf), and
        the step to sigma = 0 (where no polynomial in lam reaches) are of order 1.
    """
    return adams(2, second_moment="midpoint", order=2, lower_order_final=lower_order_final)


@factory
def dpmpp_3m(*, lower_order_final: Level | None = None) -> Solver:
    """DPM-Solver++(3M), the multistep method of order 3, for any step sizes (Lu et al. 2022, arXiv:2211.01095).

    The authors' code, k-diffusion and diffusers multiply the integral of (lam - lam_t)^2 / 2 by half of the second
    derivative, a factor 1/2 too small, which leaves order 2; here the polynomial is integrated exactly.

    Args:
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of order 3 with one evaluation per step; the first steps are of order 1 and 2, and the step to sigma =
        0 of order 1.
    """
    return adams(3, order=3, lower_order_final=lower_order_final)


@factory
def dpmpp_2m_sde(
    eta: float | Array = 1.0, s_noise: float | Array = 1.0, variant: str = "midpoint", *,
    noise_sampler: NoiseSampler = white, lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """DPM-Solver++(2M) for the SDE (k-diffusion's `sample_dpmpp_2m_sde`; SDE-DPM-Solver++(2M) of Lu et al. 2022).

    Args:
        eta: amount of noise, at least 0; may be traced. 1 is the reverse SDE, 0 the ODE (`dpmpp_2m` for "midpoint"),
            and a plain 0 draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        variant: "midpoint", or "heun", which integrates the slope exactly.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of weak order 2 with one evaluation per step; the first step and the step to sigma = 0 are of order 1.

    Raises:
        ValueError: eta is a number below 0, or an unknown variant.
    """
    if variant not in ("midpoint", "heun"):
        raise ValueError(f"variant must be midpoint or heun, got {variant!r}")
    _check_at_least_0(eta)
    second_moment = "midpoint" if variant == "midpoint" else "exact"
    return adams(
        2,
        eta=eta,
        s_noise=s_noise,
        second_moment=second_moment,
        noise_sampler=noise_sampler,
        order=2,
        lower_order_final=lower_order_final,
    )


@factory
def dpmpp_3m_sde(
    eta: float | Array = 1.0, s_noise: float | Array = 1.0, *, noise_sampler: NoiseSampler = white,
    lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """DPM-Solver++(3M) for the SDE (k-diffusion's `sample_dpmpp_3m_sde`, with `dpmpp_3m`'s second derivative).

    Args:
        eta: amount of noise, at least 0; may be traced. 1 is the reverse SDE, 0 the ODE (`dpmpp_3m`), and a plain 0
            draws no noise.
        s_noise: factor of the noise's standard deviation; may be traced.
        noise_sampler: `noise.white`, or `noise.brownian(key)` for a path that does not depend on the number of steps.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of weak order 2 (3 for a plain eta = 0) with one evaluation per step; the first steps are of order 1
        and 2, and the step to sigma = 0 of order 1.

    Raises:
        ValueError: eta is a number below 0.
    """
    order = 3 if _check_at_least_0(eta) else 2
    return adams(
        3, eta=eta, s_noise=s_noise, noise_sampler=noise_sampler, order=order, lower_order_final=lower_order_final
    )


def _check_at_least_0(eta: float | Array) -> bool:
    """Whether eta is a plain 0, without noise. Raise ValueError if it is a number below 0."""
    if isinstance(eta, (int, float)) and not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    return isinstance(eta, (int, float)) and eta == 0


def _halfway(denoise, process: Process | None, x: Array, cur: Level, nxt: Level, down: Level) -> Array:
    """DPM-Solver++(2S)'s step from `cur` to `down`, which has no more noise than `nxt`."""
    h, finite = lambda_step(cur, down)
    mid = safe_level_at_lambda(cur, nxt, cur.lam + 0.5 * h, finite)  # with eta <= 1 it is not past `nxt`
    x0 = denoise(x, cur)
    half = mid.sigma / cur.sigma * x - mid.alpha * jnp.expm1(-0.5 * h) * x0
    x0_mid = with_process(denoise, process)(half, mid)
    return exponential_step(x, jnp.where(finite, x0_mid, x0), cur, down)
