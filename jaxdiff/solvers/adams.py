"""Exponential Adams methods: x0_hat as a polynomial in lam through past evaluations, integrated exactly.

From level t to s, with h = lam_s - lam_t, u = (lam - lam_t) / h in [0, 1] and H = (1 + eta) h,

    x_s = (sigma_s / sigma_t) exp(-eta h) x_t + alpha_s int_0^1 H exp(-H (1 - u)) x0_hat(u) du
          + sigma_s sqrt(1 - exp(-2 eta h)) z

is exact: for the probability-flow ODE (eta = 0), the reverse SDE (eta = 1), and the SDEs with the same marginals for
other eta >= 0 (eta is the tau^2 of Xue et al. 2023, arXiv:2309.05019). The multistep methods of DPM-Solver++, UniPC and
SA-Solver differ in the polynomial. DEIS and DPM-Solver integrate eps_hat instead, with H = -h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, safe_sqrt
from jaxdiff.noise import white
from jaxdiff.solvers.base import Solver, check_lower_order_final, lambda_step, prepend, steps_left
from jaxdiff.types import Denoiser, NoiseSampler

__all__ = ["adams", "history_nodes", "history_weights", "moments", "weights"]

_ENDLESS = 1e4  # replaces an infinite h: exp(-eta h) is then 0, or 1 if a traced eta is 0


class AdamsState(NamedTuple):
    """State of an Adams method: the last K evaluations, newest first, and their part of the last step."""

    x0s: Array  # [K, ...]
    lams: Array  # [K]; -inf for none yet and for pure noise, to which slopes are 0
    added: Array  # the integral that the last step added to x, like x; empty without a corrector
    eta: Array  # of the last step


@factory
def adams(
    predictor: int, corrector: int = 0, *, eta: float | Array | Callable[[Level], Array] = 0.0,
    s_noise: float | Array = 1.0, second_moment: str = "exact", noise_sampler: NoiseSampler = white, order: int,
    lower_order_final: Level | None = None,
) -> Solver:  # fmt: skip
    """An Adams method with a polynomial through `predictor` evaluations, and a corrector through `corrector`.

    The corrector, at the beginning of the next step, also uses the evaluation of that step.

    Args:
        predictor, corrector: number of evaluations; 0 is no corrector.
        eta: at least 0, or a function of the step's first level. A plain 0 draws no noise.
        s_noise: standard deviation of z.
        second_moment: the integral of u for two evaluations, see `_moments`.
        noise_sampler: (key, x, cur, nxt) -> z.
        order: of the solver.
        lower_order_final: a grid, whose last step uses 1 evaluation, the one before it 2, ..., and their correctors one
            more.

    Raises:
        ValueError: `lower_order_final` is no grid.
    """
    check_lower_order_final(lower_order_final)
    deterministic = isinstance(eta, (int, float)) and eta == 0
    kept = max(predictor - 1, corrector - 1, 1)

    def init(x: Array) -> AdamsState:
        x0s, lams = jnp.zeros((kept, *x.shape), x.dtype), jnp.full(kept, -jnp.inf, x.dtype)
        return AdamsState(x0s, lams, jnp.zeros_like(x if corrector else lams[:0]), jnp.zeros((), x.dtype))

    def step(denoise: Denoiser, key: Array, x: Array, memory: AdamsState, cur: Level, nxt: Level):
        x0 = denoise(x, cur)
        left = steps_left(lower_order_final, cur)
        if corrector:  # of the previous step, before which one more was left
            x = _corrected(x, x0, _first(memory, left + 1), cur, corrector, second_moment)
        eta_now = jnp.asarray(eta(cur) if callable(eta) else eta, x.dtype)
        h, finite = lambda_step(cur, nxt)
        eta_h = eta_now * jnp.where(finite, h, _ENDLESS).astype(x.dtype)
        added = -nxt.alpha * jnp.expm1(cur.lam - nxt.lam - eta_h) * x0
        share = history_weights(
            _first(memory, left - 1).lams[: predictor - 1], cur, h, finite, (1 + eta_now) * h, second_moment
        )
        for k in range(predictor - 1):
            added = added + nxt.alpha * share[k] * (memory.x0s[k] - x0)
        x = nxt.sigma / cur.sigma * jnp.exp(-eta_h) * x + added
        if not deterministic:
            drawn = nxt.sigma * safe_sqrt(-jnp.expm1(-2 * eta_h))
            x = x + jnp.asarray(s_noise, x.dtype) * drawn * noise_sampler(key, x, cur, nxt)
        x0s, lams = prepend(memory.x0s, x0), prepend(memory.lams, cur.lam)
        return x, AdamsState(x0s, lams, added if corrector else memory.added, eta_now)

    return Solver(init, step, order=order, stochastic=not deterministic)


def _first(memory: AdamsState, most: Array | int) -> AdamsState:
    """The memory of at most so many evaluations."""
    known = jnp.arange(len(memory.lams), dtype=jnp.int32) < most
    return memory._replace(lams=jnp.where(known, memory.lams, -jnp.inf))


def _corrected(x: Array, x0: Array, memory: AdamsState, cur: Level, count: int, second_moment: str) -> Array:
    """x with the last step's integral recomputed from `count` evaluations, including x0 at the end of that step.

    The difference of the integrals is added to x, so that changes to x between steps, e.g. by inpainting, are
    preserved.
    """
    begin = memory.lams[0]
    finite = jnp.isfinite(begin) & jnp.isfinite(cur.lam)
    h = jnp.where(finite, cur.lam - jnp.where(finite, begin, 0), 1)
    u, usable = history_nodes(memory.lams[1 : max(count - 1, 1)], jnp.where(finite, begin, 0), h, finite)
    u = jnp.concatenate([jnp.array([1, 0], x.dtype), u])[:count]
    usable = jnp.concatenate([jnp.array([True, True]), usable])[:count]
    share = weights(u, usable, _moments((1 + memory.eta) * h, usable, second_moment))
    again = cur.alpha * share[0] * x0
    for k in range(1, count):
        again = again + cur.alpha * share[k] * memory.x0s[k - 1]
    return x + jnp.where(finite, again - memory.added, 0)


def history_weights(past: Array, cur: Level, h: Array, finite: Array, H: Array, second_moment: str = "exact") -> Array:
    """Weights [K] of (past - current evaluation) in the integral of H exp(-H (1 - u)) times their polynomial.

    Args:
        past: lam of the past levels, [K], newest first; infinite ones have weight 0.
        cur: the current level.
        h, finite: of the step, see `lambda_step`; all weights are 0 unless h is finite.
        H: (1 + eta) h, or -h.
        second_moment: see `_moments`.
    """
    u, usable = history_nodes(past, jnp.where(finite, cur.lam, 0), h, finite)
    u = jnp.concatenate([jnp.zeros(1, u.dtype), u])
    usable = jnp.concatenate([jnp.array([True]), usable])
    return weights(u, usable, _moments(H, usable, second_moment))[1:]


def history_nodes(lams: Array, begin: Array, h: Array, finite: Array) -> tuple[Array, Array]:
    """u = (lam - begin) / h of past levels, and which are usable; the others get distinct u > 1."""
    usable = jnp.isfinite(lams) & finite
    u = (jnp.where(usable, lams, begin) - begin) / h
    return jnp.where(usable, u, 2 + jnp.arange(len(lams), dtype=lams.dtype)), usable


def weights(u: Array, usable: Array, moment: Array) -> Array:
    """Weights of the values at nodes u in the integral of the polynomial through them, by Newton's form.

    Args:
        u: [n], distinct.
        usable: [n]; the first node that is not usable and all after it have weight 0.
        moment: [n], the integrals of 1, u, ..., u^(n - 1).
    """
    n = len(u)
    difference = jnp.eye(n, dtype=u.dtype)  # each row has a divided difference's weights
    total = moment[0] * difference[0]
    for j in range(1, n):
        difference = (difference[:-1] - difference[1:]) / (u[: n - j] - u[j:])[:, None]
        moment = moment[1:] - u[j - 1] * moment[:-1]  # of u^i (u - u_0) ... (u - u_(j-1))
        total = total + jnp.where(usable[j], moment[0], 0) * difference[0]
    return total


def moments(H: Array, n: int) -> Array:
    """int_0^1 H exp(-H (1 - u)) u^j du for j < n, of either sign of H: j! H phi_(j+1)(-H), [n]."""
    # By parts m_j = 1 - (j / H) m_(j-1), which cancels for small H; the recurrence from the last one's series down does
    # not.
    small = jnp.abs(H) < 2
    tiny, large = jnp.where(small, H, 1), jnp.where(small, 2, H)
    series = jnp.ones_like(H)
    for k in range(24, 0, -1):  # the next term is below 1e-18 of the first
        series = 1 - tiny / (n + k) * series
    back, on = [tiny / n * series], [-jnp.expm1(-large)]
    for j in range(1, n):
        back.append(tiny / (n - j) * (1 - back[-1]))
        on.append(1 - j / large * on[-1])
    return jnp.where(small, jnp.stack(back[::-1]), jnp.stack(on))


def _moments(H: Array, usable: Array, second_moment: str) -> Array:
    """`moments`, with the moment of u chosen by the method if there are exactly two evaluations.

    Any choice H / 2 + O(H^2) keeps order 2. "exact" is DPM-Solver++'s "heun"; "midpoint" is half the integral of 1
    (DPM-Solver++(2M), UniPC's B_2); "half" is H / 2 (UniPC's B_1).
    """
    n = len(usable)
    moment = moments(H, n)
    if second_moment == "exact" or n == 1:
        return moment
    simple = 0.5 * (moment[0] if second_moment == "midpoint" else H)
    pair = usable[1] if n == 2 else usable[1] & ~usable[2]
    return moment.at[1].set(jnp.where(pair, simple, moment[1]))
