"""The coefficients of diffusers' exponential integrators, in float64.

From level s to t, with h = lam_t - lam_s, u = (lam - lam_s) / h and a polynomial p through predictions of the network,

    x_t = (sigma_t / sigma_s) exp(-eta h) x_s + alpha_t int_0^1 H exp(-H (1 - u)) p(u) du + noise,  H = (1 + eta) h,

for predictions of x_0; for eps_hat it is (alpha_t / alpha_s) x_s + (1 + eta) sigma_t int ..., with H = -h. The
schedulers differ in the predictions, and in the approximation of the integrals of u and u^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial

import numpy as np

from jaxdiff.interop.schedulers.multistep import Points, Step

__all__ = ["Integral", "moments", "rule", "step_between"]

Integral = Callable[[float, int], np.ndarray]  # (H, n) -> the integrals of 1, u, ..., u^(n - 1)


def moments(H: float, n: int) -> np.ndarray:
    """Compute int_0^1 H exp(-H (1 - u)) u^j du for j < n."""
    if abs(H) < 1:  # by series, since differences would cancel
        terms = [[(-H) ** i * (factorial(j) / factorial(i + j + 1)) for i in range(20)] for j in range(n)]
        return H * np.sum(terms, axis=1)
    values = [-np.expm1(-H)]
    for j in range(1, n):
        values.append(1 - j / H * values[-1])
    return np.array(values)


def rule(two: str, squares: Callable[[float, np.ndarray], float] | None = None) -> Integral:
    """Return `moments` with a scheduler's approximations.

    Args:
        two: the integral of u for a linear polynomial: "exact", "midpoint" (half that of 1) or "half" (H / 2).
        squares: (H, moments) -> the integral of u^2 for a quadratic polynomial; None: the exact one.
    """

    def integral(H: float, n: int) -> np.ndarray:
        m = moments(H, n)
        if n == 2 and two != "exact":
            m[1] = 0.5 * (m[0] if two == "midpoint" else H)
        if n == 3 and squares is not None:
            m[2] = squares(H, m)
        return m

    return integral


def step_between(
    points: Points, ends: tuple[int, int], nodes: Sequence[int], integral: Integral, *, eta: float = 0.0,
    of_noise: bool = False,
) -> Step:  # fmt: skip
    """Return the step between two levels of a list, with the polynomial through the predictions at `nodes`.

    Args:
        points: the list.
        ends: indices of the two levels.
        nodes: indices of the levels of the predictions.
        integral: see `rule`.
        eta: amount of noise; 0 is the ODE, 1 the reverse SDE.
        of_noise: whether predictions are eps_hat.

    Returns:
        the coefficients, with weights in the order of nodes.
    """
    alpha, sigma, lam, (s, t) = points.alpha, points.sigma, points.lam, ends
    with np.errstate(all="ignore"):  # `multistep` checks that all are finite
        h = lam[t] - lam[s]
        h = 0.0 if abs(h) < 1e-12 else h  # from a level to itself
        left = np.exp(-eta * h) if eta else 1.0  # h may be infinite
        if of_noise:
            keep, scale, H = alpha[t] / alpha[s], (1 + eta) * sigma[t], -h
            noise = sigma[t] * np.sqrt(eta * np.expm1(2 * h)) if eta else 0.0
        else:
            keep, scale, H = sigma[t] / sigma[s] * left, alpha[t], (1 + eta) * h
            noise = sigma[t] * np.sqrt(1 - left**2)
        if h == 0:
            return Step(keep, np.zeros(len(nodes)))
        if np.isposinf(h):  # to clean data, which no polynomial reaches
            full = sigma[t] - alpha[t] / alpha[s] * sigma[s] if of_noise else alpha[t]
            return Step(keep, np.array([full, *np.zeros(len(nodes) - 1)]), noise)
        u = (lam[list(nodes)] - lam[s]) / h
        return Step(keep, scale * _interpolated(u, integral(H, len(nodes))), noise)


def _interpolated(u: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the weights of values at u in the integral of the polynomial through them, given those of 1, u, ..."""
    if len(set(u)) < len(u):
        return np.full(len(u), np.nan)
    return np.linalg.solve(np.vander(u, increasing=True).T, moment)
