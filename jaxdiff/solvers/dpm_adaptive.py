"""DPM-Solver-12 and 23 (Lu et al. 2022): steps in lam, with sizes controlled by the error of an embedded pair."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, from_x0, safe_sqrt
from jaxdiff.noise import fold_in, white
from jaxdiff.processes import Process
from jaxdiff.solvers.adams import moments
from jaxdiff.solvers.adaptive import AdaptiveState, Attempt, Progress, check_adaptive, init_adaptive, per_example, walk
from jaxdiff.solvers.ancestral import ancestral_step, check_eta
from jaxdiff.solvers.base import Solver, check_order, exponential_step, lambda_step, level_at_lambda, with_process
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["dpm_adaptive"]

_INNER = {2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}  # positions of a step's evaluations, as shares of h


@factory
def dpm_adaptive(
    order: int = 3, rtol: float | Array = 0.05, atol: float | Array = 0.0078, process: Process | None = None, *,
    eta: float | Array = 0.0, s_noise: float | Array = 1.0, noise_sampler: NoiseSampler = white,
    h_init: float | Array = 0.05,
    pid: tuple[float | Array, ...] = (0.0, 1.0, 0.0), accept_safety: float | Array = 0.81, max_steps: int = 1000,
) -> Solver:  # fmt: skip
    """DPM-Solver-12 or 23 with a step size for each example (Lu et al. 2022, arXiv:2206.00927, appendix C).

    With the controller and the defaults of k-diffusion's `sample_dpm_adaptive`, for each example independently. The
    usual grid has one interval to the lowest sigma and one to clean data. `sample_state` also returns the number of
    evaluations, in the state's `nfe`. The batch is evaluated until all examples have ended. Differentiable in forward
    mode only, since the number of steps is not static.

    Args:
        order: 3 compares steps of order 3 and 2, 2 compares 2 and 1; the result is that of the higher order.
        rtol: tolerance of a step's error (root mean square over an example), relative to |x|; > 0, may be traced.
        atol: absolute tolerance, a lower bound of the relative one; > 0, may be traced. The default is 1 / 128 for
            images in [-1, 1].
        process: gives the times of inner points, as for `rk45`. Pass it unless the network receives the time of EDM or
            Flow.
        eta: share of the posterior's noise in each step, in [0, 1]; may be traced. A plain 0 draws no noise. The
            controller estimates the error of the deterministic part only: with noise, choose smaller tolerances.
        s_noise: factor of the noise's standard deviation; may be traced.
        noise_sampler: `noise.white`, or `noise.brownian(keys)`, one key an example, for a path that does not depend on
            the steps.
        h_init: size of the first step in lam, > 0; may be traced.
        pid: proportional, integral and derivative coefficients of the controller; may be traced. The history of errors
            is reset in each interval.
        accept_safety: a step is accepted if the factor of the next step size is at least this; may be traced.
        max_steps: largest number of attempts per example in an interval. The last one covers the rest in one step,
            whatever its error, so that sampling ends, and sets the state's `failed`.

    Returns:
        a solver whose error is set by the tolerance, with `order` evaluations per attempt; the steps from pure noise
        and to sigma = 0 are DDIM's.

    Raises:
        ValueError: order is not 2 or 3; a tolerance or h_init is a number and not positive; max_steps < 1; eta is a
            number outside [0, 1].
    """
    check_adaptive(rtol, atol, max_steps)
    check_order("dpm_adaptive", order, *_INNER)
    if isinstance(h_init, (int, float)) and not h_init > 0:
        raise ValueError(f"h_init must be positive, got {h_init}")
    deterministic = check_eta(eta)
    control = _controller(pid, order if deterministic else 1.5, accept_safety)  # k-diffusion's exponents

    def step(denoise: Denoiser, key: Array, x: Array, state: AdaptiveState, cur: Level, nxt: Level):
        h, finite = lambda_step(cur, nxt)
        inner = with_process(denoise, process)

        def at(lam: Array) -> Level:
            return level_at_lambda(nxt, cur, lam)  # from the clean end, where sigma may be much smaller than cur's

        def attempt(walk: Progress, h: Array, last: Array) -> Attempt:
            x_low, *errors = walk.memory
            lam = nxt.lam - walk.left
            here, there = at(lam), at(lam + h)
            down, up = (there, None) if deterministic else _ancestral(eta, x, here, there, nxt)
            low, high = _pair(inner, walk.x, here, down, order=order, at=at)
            tolerated = jnp.maximum(jnp.abs(low), jnp.abs(x_low)) * jnp.asarray(rtol, x.dtype)
            tolerated = jnp.maximum(tolerated, jnp.asarray(atol, x.dtype))
            square = jnp.mean(jnp.square((low - high) / tolerated), axis=tuple(range(1, x.ndim)))
            good, factor, errors = control(square, walk.tries == 0, errors, last)
            if up is not None:
                # All unfinished examples have made the same number of attempts.
                z = noise_sampler(fold_in(key, jnp.max(walk.tries)), x, here, there)
                high = high + jnp.asarray(s_noise, x.dtype) * per_example(up, x) * z
            taken = good | last
            return Attempt(high, good, factor * walk.step, (jnp.where(per_example(taken, x), low, x_low), *errors))

        def walked() -> tuple[Array, AdaptiveState]:
            zeros = jnp.zeros_like(state.step)
            start = Progress(
                x,
                left=zeros + jnp.where(finite, h, 0),
                # At most h: over many short intervals it would grow without bound.
                step=jnp.minimum(jnp.where(state.step > 0, state.step, jnp.asarray(h_init, x.dtype)), h),
                tries=jnp.zeros_like(state.nfe),
                failed=state.failed,
                memory=(x, zeros, zeros),
            )
            end = walk(attempt, start, max_steps)
            return end.x, AdaptiveState(state.nfe + order * end.tries, end.step, end.failed)

        def at_once() -> tuple[Array, AdaptiveState]:
            return exponential_step(x, denoise(x, cur), cur, nxt), state._replace(nfe=state.nfe + 1)

        return jax.lax.cond(finite, walked, at_once)

    return Solver(init_adaptive, step, order=None, nfe=None, stochastic=not deterministic)


def _pair(denoise, x: Array, cur: Level, end: Level, *, order: int, at: Callable[[Array], Level]):
    """Results of DPM-Solver's steps of orders `order - 1` and `order` from `cur` to `end`, with the same inner points.

    Args:
        denoise, x: as for `types.SolverStep`.
        cur, end: levels [B].
        order: 2 or 3.
        at: lam [B] -> level [B] of an inner point.
    """
    h = end.lam - cur.lam
    start, final, zero = cur.expand_to(x), end.expand_to(x), jnp.zeros_like(x)
    # The integral of eps' slope up to the third point, and to the end, of DPM-Solver-3.
    bend = jnp.zeros((2, *h.shape), x.dtype)
    if order == 3:
        bend = moments(-jnp.stack([2 / 3 * h, h]), 2)[1]
    bends = jnp.zeros((order, *h.shape), x.dtype).at[-1].set(2 * bend[0])

    def stage(carry, r_bend):
        (x0, first, previous), (r, bend) = carry, r_bend
        level = at(cur.lam + r * h)
        mid = level.expand_to(x)
        u = mid.sigma / start.sigma * x - mid.alpha * per_example(jnp.expm1(-r * h), x) * x0
        u = u + mid.sigma * per_example(bend, x) * (previous - first)
        ends = from_x0(denoise(u, level), u, level)
        x0, first = (jnp.where(r == 0, new, old) for new, old in zip(ends, (x0, first), strict=True))
        return (x0, first, ends.eps), ends.eps

    points = jnp.asarray(_INNER[order], x.dtype), bends
    (x0, first, _), eps = jax.lax.scan(stage, (zero, zero, zero), points)
    base, inner = exponential_step(x, x0, start, final), final.sigma * per_example(jnp.expm1(h), x) * (eps[1] - first)
    if order == 2:
        return base, base - inner
    return base - 1.5 * inner, base + 1.5 * final.sigma * per_example(bend[1], x) * (eps[2] - first)


def _ancestral(eta, x: Array, here: Level, there: Level, nxt: Level) -> tuple[Level, Array]:
    """The level to step to, not past the interval's end, and the noise from there to `there`; levels [B]."""
    down, _ = ancestral_step(eta, x, here, there)
    down = down._replace(sigma=jnp.maximum(down.sigma, there.alpha * (nxt.sigma / nxt.alpha)))
    return down, safe_sqrt(jnp.maximum((there.sigma - down.sigma) * (there.sigma + down.sigma), 0))


def _controller(pid, order: float, accept_safety):
    """(squared error, whether it is the first, [earlier inverse errors], last) -> (good, factor, [...]); all [B]."""

    def control(square: Array, begins: Array, errors: list[Array], last: Array):
        p, i, d = (jnp.asarray(c, square.dtype) for c in pid)
        # NaN and overflow count as a large error, which reduces the step.
        error = jnp.sqrt(jnp.clip(jnp.where(jnp.isfinite(square), square, 1e20), 1e-20, 1e20))
        now = 1 / (error + 1e-8)
        last_1, last_2 = (jnp.where(begins, now, earlier) for earlier in errors)
        factor = now ** ((p + i + d) / order) * last_1 ** (-(p + 2 * d) / order) * last_2 ** (d / order)
        factor = 1 + jnp.arctan(factor - 1)
        good = factor >= jnp.asarray(accept_safety, factor.dtype)
        kept = [jnp.where(good | last, new, old) for new, old in ((now, last_1), (last_1, last_2))]
        return good, factor, kept

    return control
