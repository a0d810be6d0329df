"""Posterior sampling by the gradient of a loss of x0_hat: any loss, or the likelihood of a measurement (DPS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, norm, per_example, scale_at, sum_of_examples
from jaxdiff.inverse.base import check_operator, check_std, jacobian, measure, tweedie_factor
from jaxdiff.inverse.operators.base import Operator
from jaxdiff.inverse.posterior import moved
from jaxdiff.levels import Level
from jaxdiff.solvers.base import Solver, check_one_level, check_solver
from jaxdiff.types import Denoiser

__all__ = ["dps", "dps_normalized", "guide"]


def guide(denoise: Denoiser, loss: Callable[[Array], Array], scale: Scale = 1.0) -> Denoiser:
    """Guidance by a loss of x0_hat: the score minus scale grad loss(x0_hat(x_t)) (Chung et al. 2022, arXiv:2209.14687).

    By Tweedie's formula x0_hat - scale (sigma^2 / alpha) J^T grad loss. For measurements that are not linear (phase
    retrieval), styles, classifiers of clean pictures: a negative log-likelihood, with a scale of 1.

    Args:
        denoise: the denoiser to guide.
        loss: x_0 [B, ...] -> [B], of each example alone.
        scale: a number, [B] or a function of the level; 0 is off.

    Returns:
        the guided denoiser, one backward pass a call, without guidance at pure noise (alpha = 0). A learned variance
        stays.

    Raises:
        ValueError: `denoise` or `loss` is not a function, or a scale as for `guidance.cfg`; when called, a loss that
            is not [B].
    """
    check_denoisers(denoise=denoise)
    check_function("loss", loss, "(x0) -> [B]")
    check_number("scale", scale)

    def posterior(x: Array, level: Level) -> Any:
        x0, variance, pull = jacobian(denoise, x, level)
        downhill = pull(-jax.grad(lambda x0: sum_of_examples("loss", loss(x0), x0))(x0))
        return join_variance(moved(x0, tweedie_factor(x, level) * downhill, scale, level), *variance)

    return posterior


def dps(denoise: Denoiser, operator: Operator, y: Array, std: float | Array, *, scale: Scale = 1.0) -> Denoiser:
    """Diffusion posterior sampling: the gradient of log N(y; A x0_hat, std^2 I) (Chung et al. 2022).

    arXiv:2209.14687. With a scale of 1 this is the paper's approximation itself, not its normalized step, for which
    see `dps_normalized`. It takes x0_hat for certain: samples of Gaussian data of variance c come out with a
    variance of c exp(-c / std^2) where c std^2 / (c + std^2) is right, by the probability flow; and the gradient is
    stiff for a small std.

    Args:
        denoise, operator, y, scale: as for `tmpd`.
        std: as for `tmpd`, and positive.

    Returns:
        the denoiser, as by `guide`.

    Raises:
        ValueError: as for `tmpd`; a std of 0.
    """
    check_operator(operator, y)
    check_std(std, positive=True)

    def loss(x0: Array) -> Array:
        residual = y - measure(operator, y, x0)
        square = jnp.sum((jnp.conj(residual) * residual).real.reshape(len(y), -1), axis=1)
        return 0.5 * square / jnp.square(per_example("std", std, square))

    return guide(denoise, loss, scale)


def dps_normalized(solver: Solver, operator: Operator, y: Array, scale: float | Array = 1.0) -> Solver:
    """DPS as it is published: a solver's step, minus scale grad_x |y - A x0_hat(x)| (Chung et al. 2022, algorithm 1).

    arXiv:2209.14687. The gradient of the norm, not of its square, has one size whatever the residual is: no noise
    level enters, and what it samples is no posterior, also of Gaussian data. The scale is that of the authors'
    code; half of it is the paper's zeta'.

    Args:
        solver: the solver of the unconditional step, in the paper DDPM's.
        operator: A.
        y: measurements, [B, *measured].
        scale: a number or [B]; may be traced; 0 is off.

    Returns:
        a solver with a backward pass a step, and one more evaluation unless it evaluates at the step's start; it has
        no order.

    Raises:
        ValueError: not a solver or an operator, a solver of flow maps, y that is not finite, of another shape than A x
            or not 0 where nothing is measured, or a scale that is not finite.
    """
    check_solver(solver)
    check_operator(operator, y)
    check_number("scale", scale)
    check_one_level(solver)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        x0, variance, pull = jacobian(denoise, x, cur)
        start = join_variance(x0, *variance)
        # XLA would not merge the solver's own evaluation here with that of the gradient.
        known = lambda at, level: start if at is x and level is cur else denoise(at, level)  # noqa: E731

        def distance(x0: Array) -> Array:
            residual = y - measure(operator, y, x0)
            return jnp.sum(norm(jnp.stack([residual.real, residual.imag], axis=-1)))

        stepped, state = solver.step(known, key, x, state, cur, nxt)
        return stepped - scale_at(scale, x, cur) * pull(jax.grad(distance)(x0)), state

    # At most: most solvers evaluate at the step's start.
    nfe = None if solver.nfe is None else solver.nfe + 1
    return solver._replace(step=step, order=None, nfe=nfe)
