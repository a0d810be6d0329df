"""Exact students of Gaussian data, told both ends of a step, and expectations of affine students without luck.

Data are N(M, V) in each dimension. All a student does is affine in x, and a squared loss of it quadratic in (x_0, eps):
the four points (M +- sqrt V, +- 1), each a dimension of the batch's examples, have the same first and second moments as
(x_0, eps), so that a mean over dimensions is the expectation.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxdiff.distill import Context
from jaxdiff.parameterize import with_noise_input

M, V = 0.7, 0.25


def named(prediction):
    """The prediction, whose network is told the times themselves."""
    return with_noise_input(prediction, lambda level: level.t)


def nodes(batch, m=M, v=V, dtype=np.float64):
    """A batch of examples, the dimensions of each of which are the four points of (x_0, eps)."""
    x0, eps = m + np.sqrt(v) * np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    return {name: jnp.asarray(np.tile(a, (batch, 1)), dtype) for name, a in (("x", x0), ("eps", eps))}


def fixed(t, s, weight=1.0):
    """Pairs of times that are not drawn."""
    t, s = (jnp.asarray(a) for a in (t, s))
    return lambda key, batch, step: (t, s, jnp.full(t.shape, weight, t.dtype))


def context(step=0, ema=None, frozen=None):
    return Context(jnp.int32(step), ema, frozen)


def moment(level, v=V):
    """Var[x_t]."""
    return level.alpha**2 * v + level.sigma**2


def flow_map(x, cur, nxt, m=M, v=V):
    """The probability flow from one level to another: each point keeps its quantile."""
    return nxt.alpha * m + jnp.sqrt(moment(nxt, v) / moment(cur, v)) * (x - cur.alpha * m)


def both_ends(x, cur, nxt, m=M, v=V):
    """The x0_hat whose step from `cur` ends where the flow is at `nxt`: m + K (x - alpha_t m).

    K = (S_s / S_t - sigma_s / sigma_t) / (alpha_s - alpha_t sigma_s / sigma_t), S^2 = Var, in a form without a quotient
    of differences: at nxt = cur it is the denoiser.
    """
    s_cur, s_nxt = jnp.sqrt(moment(cur, v)), jnp.sqrt(moment(nxt, v))
    cross = nxt.alpha * cur.sigma + cur.alpha * nxt.sigma
    return m + v * cross / (s_cur * (s_nxt * cur.sigma + nxt.sigma * s_cur)) * (x - cur.alpha * m)


def denoise(x, level, m=M, v=V):
    """E[x_0 | x_t]."""
    level = level.expand_to(x)
    return m + v * level.alpha / moment(level, v) * (x - level.alpha * m)


BASIS = 6


def off(p, x, t, s):
    """What parameters add to an exact student: functions of x and of both times."""
    return p[0] + p[1] * x + p[2] * t + p[3] * s * x + p[4] * t * x + p[5] * s


def student(process, prediction, exact=both_ends):
    """(params [BASIS], x, noise, cond) -> F of the exact student, at params = 0."""

    def apply(params, inp_x, noise, cond, *, key=None):
        cur, nxt = (process(t).expand_to(inp_x) for t in (noise, cond["next_noise"]))
        s = prediction(cur)
        x = inp_x / s.inp
        F = (exact(x, cur, nxt) - s.skip * x) / s.out
        return F + off(params, x, cur.t, nxt.t)

    return apply
