"""Posterior denoisers: E[x_0 | x_t, y] of a linear measurement y = A x_0 + std n, approximated for any network.

Were p(x_0 | x_t) a Gaussian N(D, C), the mean of x_0 given y as well would be

    D + C A^T (A C A^T + std^2 I)^-1 (y - A D),     C = (sigma^2 / alpha) J,  J = dD / dx_t

(the second moment by Tweedie's formula). The methods differ in what they take for C, first where it meets the residual
and then inside the inverse:

| method | C A^T | A C A^T | exact for Gaussian data |
|---|---|---|---|
| `tmpd` | C | C | any |
| `pigdm` | C | r^2 A A^T | of variance p I, with r^2 = p sigma^2 / (alpha^2 p + sigma^2) |
| `dps` | C | 0 | none; overconfident |
| `diffpir` | r^2 I | r^2 A A^T | as `pigdm`, with that r^2 |
| `ddnm` | I | A A^T, std = 0 | of variance p I, y without noise |

Each answers with a denoiser: any solver, guidance, grid and process goes with it. Errors of an approximate C fade with
the noise that a stochastic solver draws. In the limit of many steps `solvers.ddim(eta=1.0)` has 0.5 to 0.8 of an ODE
solver's errors with `pigdm`, `dps` and `diffpir`, in mean and in covariance, for the Gaussian data of the tests, of
variances 4 to 0.05; 0.3 to 1.2 of them with other draws of such a problem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, scale_at, split_variance
from jaxdiff.inverse.base import (
    check_operator,
    check_std,
    jacobian,
    measure,
    tweedie_factor,
    variance_of,
)
from jaxdiff.inverse.operators.base import Operator, check_count, conjugate_gradients, times
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser

__all__ = ["ddnm", "diffpir", "moved", "pigdm", "spread", "tmpd"]


def tmpd(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    std: float | Array,
    *,
    scale: Scale = 1.0,
    iterations: int = 10,
) -> Denoiser:
    """Tweedie moment projected diffusion: the Gaussian posterior mean with C = (sigma^2 / alpha) J (Boys et al. 2023).

    arXiv:2310.06721. The paper keeps the diagonal of A C A^T; here it is solved by conjugate gradients, so that
    Gaussian data is exact. They stop where v^T (A C A^T + std^2 I) v falls below std^2 |v|^2 / 2, which no covariance
    allows and a network's J may do.

    Args:
        denoise: the denoiser, which may be guided already.
        operator: A.
        y: measurements, [B, *measured].
        std: standard deviation of their noise, in the units of y: a number or [B]; may be traced.
        scale: of the correction; a number, [B] or a function of the level; 0 is off.
        iterations: of conjugate gradients, each one backward pass of the network.

    Returns:
        the denoiser of the posterior, without correction at pure noise (alpha = 0). A learned variance stays.

    Raises:
        ValueError: std < 0, y that is not finite, of another shape than A x or not 0 where nothing is measured,
            iterations < 1, or a scale as for `guidance.cfg`. Values that are traced are not looked at.
    """
    _check(denoise, operator, y, std, scale)
    check_count("iterations", iterations)

    def posterior(x: Array, level: Level) -> Any:
        x0, variance, pull = jacobian(denoise, x, level)
        factor, noise = tweedie_factor(x, level), variance_of(std, y)
        covariance = lambda u: factor * pull(u)  # noqa: E731
        matvec = lambda v: operator.apply(covariance(operator.adjoint(v))) + times(noise, v)  # noqa: E731
        # A network's J is nearly a covariance: where it isn't, the solution would grow without bounds.
        w = conjugate_gradients(matvec, y - measure(operator, y, x0), iterations, least=noise)
        return join_variance(moved(x0, covariance(operator.adjoint(w)), scale, level), *variance)

    return posterior


def pigdm(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    std: float | Array,
    *,
    prior_std: float | Array = 1.0,
    scale: Scale = 1.0,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: A C A^T = r^2 A A^T (Song et al. 2023, ICLR).

    r^2 = p sigma^2 / (alpha^2 p + sigma^2) is Var(x_0 | x_t) of data with variance p = prior_std^2.

    Args:
        denoise, operator, y, std, scale: as for `tmpd`.
        prior_std: standard deviation of the data; may be traced.

    Returns:
        the denoiser of the posterior, one backward pass a call, without correction at pure noise (alpha = 0). A learned
        variance stays.

    Raises:
        ValueError: as for `tmpd`; prior_std < 0.
    """
    _check(denoise, operator, y, std, scale)
    check_number("prior_std", prior_std, low=0)

    def posterior(x: Array, level: Level) -> Any:
        x0, variance, pull = jacobian(denoise, x, level)
        c, d = spread(y, level, 1.0, prior_std)
        w = operator.solve(y - measure(operator, y, x0), c / d, variance_of(std, y))
        return join_variance(moved(x0, tweedie_factor(x, level) * pull(operator.adjoint(w)), scale, level), *variance)

    return posterior


def diffpir(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    std: float | Array,
    *,
    lam: float | Array = 1.0,
    prior_std: float | Array | None = None,
    scale: Scale = 1.0,
) -> Denoiser:
    """The proximal step: argmin |A x - y|^2 / std^2 + |x - x0_hat|^2 / r^2 (DiffPIR, Zhu et al. 2023).

    arXiv:2305.08995. 1 / r^2 = lam alpha^2 / sigma^2, the paper's; with `prior_std`, 1 / prior_std^2 is added: with
    lam = 1 this is Var(x_0 | x_t) of data with that standard deviation, as for `pigdm`. The network is not
    differentiated.

    Args:
        denoise, operator, y, std, scale: as for `tmpd`.
        lam: the paper's lambda: larger ones trust the network more. May be traced.
        prior_std: standard deviation of the data; None for an infinite one. May be traced.

    Returns:
        the denoiser of the posterior. A learned variance stays.

    Raises:
        ValueError: as for `tmpd`; lam < 0 or prior_std < 0.
    """
    _check(denoise, operator, y, std, scale)
    check_number("lam", lam, low=0)
    check_number("prior_std", 1.0 if prior_std is None else prior_std, low=0)

    def correct(x0: Array, level: Level) -> Array:
        # r^2 A^T (r^2 A A^T + std^2 I)^-1 with r^2 = c / d, which may be infinite.
        c, d = spread(y, level, lam, prior_std)
        w = operator.solve(y - measure(operator, y, x0), c, d * variance_of(std, y))
        return spread(x0, level, lam, prior_std)[0] * operator.adjoint(w)

    return _without_jacobian(denoise, correct, scale)


def ddnm(denoise: Denoiser, operator: Operator, y: Array, *, scale: Scale = 1.0) -> Denoiser:
    """The null space of the denoiser and the range of y: A^+ y + (I - A^+ A) x0_hat (DDNM, Wang et al. 2022).

    arXiv:2212.00490. For measurements without noise, which the sample fits: A x = y for any network, if the last step
    returns x0_hat. It would fit noise as well; for noisy ones see `diffpir`.

    Args:
        denoise, operator, y, scale: as for `tmpd`.

    Returns:
        the denoiser of the posterior; the network is not differentiated. A learned variance stays.

    Raises:
        ValueError: as for `tmpd`.
    """
    _check(denoise, operator, y, 0.0, scale)

    def correct(x0: Array, level: Level) -> Array:
        return operator.pseudoinverse(y - measure(operator, y, x0))

    return _without_jacobian(denoise, correct, scale)


def spread(like: Array, level: Level, lam: float | Array, prior_std: float | Array | None) -> tuple[Array, Array]:
    """r^2 = 1 / (lam alpha^2 / sigma^2 + 1 / prior_std^2) as a fraction c / d, both finite at all levels."""
    at = level.expand_to(like.real)
    c, d = jnp.square(at.sigma), scale_at(lam, like.real, level) * jnp.square(at.alpha)
    if prior_std is None:
        return c, d
    prior = variance_of(prior_std, like)
    return c * prior, d * prior + c


def _without_jacobian(denoise: Denoiser, correct: Callable[[Array, Level], Array], scale: Scale) -> Denoiser:
    def posterior(x: Array, level: Level) -> Any:
        x0, *variance = split_variance(denoise(x, level))
        return join_variance(moved(x0, correct(x0, level), scale, level), *variance)

    return posterior


def moved(x0: Array, correction: Array, scale: Scale, level: Level) -> Array:
    """x0 + scale correction."""
    return x0 + scale_at(scale, x0, level) * correction


def _check(denoise: Denoiser, operator: Operator, y: Array, std: float | Array, scale: Scale) -> None:
    check_denoisers(denoise=denoise)
    check_operator(operator, y)
    check_std(std)
    check_number("scale", scale)
