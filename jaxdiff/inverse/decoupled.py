"""Decoupled annealing: x_0 is drawn given x_t and y, and noised to the next level anew (DAPS); and split Gibbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_function, check_number
from jaxdiff.guidance.base import sum_of_examples
from jaxdiff.inverse.base import check_operator, check_std, measure, variance_of
from jaxdiff.inverse.operators.base import Operator, check_count, times
from jaxdiff.inverse.posterior import spread
from jaxdiff.levels import Level, clean_level, posterior, q_sample, safe_sqrt
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.processes import Process
from jaxdiff.solvers.base import Solver, exponential_step, init_empty, lerp, with_process
from jaxdiff.types import Denoiser

__all__ = ["X0Sampler", "daps", "exact", "langevin", "split_gibbs"]


class X0Sampler(Protocol):
    """Draws x_0 from N(x0_hat, std^2 I) times the likelihood of a measurement."""

    def __call__(self, key: Array, x0: Array, std: Array, level: Level, /) -> Array:
        """x_0.

        Args:
            key: the step's key, or [B] keys.
            x0: x0_hat, [B, ...].
            std: the standard deviation of x_0 about it, broadcasts against it.
            level: the level of x_t, a scalar.

        Returns:
            like x0.
        """
        ...


def daps(
    sampler: X0Sampler, *, prior_std: float | Array = 1.0, steps: int = 1, process: Process | None = None
) -> Solver:
    """Decoupled annealing posterior sampling: x0_hat, x_0 given y, x_s = alpha x_0 + sigma z (DAPS, Zhang et al. 2024).

    arXiv:2407.01521, algorithm 1. x_0 given x_t is N(x0_hat, r^2 I), where the paper has r = sigma / alpha and here
    r^2 is that of `pigdm`, which is finite at pure noise: exact for data of variance prior_std^2 I, at any number
    of steps. As each step forgets all but x_0, errors of earlier ones do not add up.

    Args:
        sampler: draws x_0 given x0_hat and y: `exact` for linear measurements, `langevin` for others.
        prior_std: standard deviation of the data; may be traced.
        steps: of DDIM from x_t to x0_hat, at sigma / alpha that fall as Karras's with rho = 7, the paper's; 1 is the
            denoiser itself.
        process: gives the times of the levels between; None has them linear, as for solvers with inner points.

    Returns:
        a solver with `steps` evaluations a step, which ends with x_0 itself. It has no order.

    Raises:
        ValueError: `sampler` is not a function, steps < 1, or prior_std < 0.
    """
    check_function("sampler", sampler, "(key, x0, std, level) -> x0")
    check_number("prior_std", prior_std, low=0)
    check_count("steps", steps)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        inner = denoise if steps == 1 else with_process(denoise, process)

        def descend(z: Array, share: tuple[Array, Array]) -> tuple[Array, None]:
            begin, end = (lerp(clean_level(cur), cur, w) for w in share)
            return exponential_step(z, inner(z, begin), begin, end), None

        x0 = denoise(x, cur) if steps == 1 else jax.lax.scan(descend, x, _shares(steps, x))[0]
        c, d = spread(x0, cur, 1.0, prior_std)
        x0 = sampler(fold_in(key, 0), x0, jnp.sqrt(c / d), cur)
        return q_sample(x0, normal_like(fold_in(key, 1), x0), nxt), state

    return Solver(init_empty, step, order=None, nfe=int(steps), stochastic=True)


def split_gibbs(sampler: X0Sampler, *, steps: int = 20, process: Process | None = None) -> Solver:
    """Split Gibbs sampling: x_0 given x_t by the prior, then x_s / alpha_s given x_0 and y (PnP-DM, Wu et al. 2024).

    arXiv:2405.18782, algorithm 1: a step draws x_0 by the reverse SDE from x_t, without the measurement, and z from
    N(x_0, rho^2 I) times the likelihood, rho = sigma_s / alpha_s. At one level, taken again and again, it draws from
    p(x_0) N(z; x_0, rho^2 I) p(y | z) for any data, which nears the posterior as rho falls: exact in the limit of many
    levels and inner steps, where `daps` is for data of one variance.

    Args:
        sampler: draws z given x_0 and y: `exact` for linear measurements, `langevin` for others.
        steps: of DDPM from x_t to x_0, at levels as those of `daps`.
        process: as for `daps`.

    Returns:
        a solver with `steps` evaluations a step, which ends with x_0 itself. It has no order.

    Raises:
        ValueError: `sampler` is not a function, or steps < 1.
    """
    check_function("sampler", sampler, "(key, x0, std, level) -> x0")
    check_count("steps", steps)

    def step(denoise: Denoiser, key: Array, x: Array, state, cur: Level, nxt: Level):
        inner = with_process(denoise, process)

        def descend(z: Array, inputs: tuple[Array, tuple[Array, Array]]) -> tuple[Array, None]:
            i, share = inputs
            begin, end = (lerp(clean_level(cur), cur, w) for w in share)
            mean, std = posterior(inner(z, begin), z, begin, end)
            return mean + std * normal_like(fold_in(key, i), z), None

        x0 = jax.lax.scan(descend, x, (jnp.arange(1, steps + 1), _shares(steps, x)))[0]
        noisy = nxt.sigma > 0
        rho = jnp.where(noisy, nxt.sigma, 1) / nxt.alpha
        z = sampler(fold_in(key, 0), x0, rho.astype(x.dtype), nxt)
        return jnp.where(noisy, nxt.alpha * z, x0).astype(x.dtype), state

    return Solver(init_empty, step, order=None, nfe=int(steps), stochastic=True)


def _shares(steps: int, x: Array) -> tuple[Array, Array]:
    """Both ends of the inner steps, from the level itself to clean data: sigma / alpha fall as Karras's, rho = 7."""
    shares = (1 - np.arange(steps + 1) / steps) ** 7  # of the noise: what is left of it would be lost beside 1
    return jnp.asarray(shares[:-1], x.dtype), jnp.asarray(shares[1:], x.dtype)


def exact(operator: Operator, y: Array, std: float | Array) -> X0Sampler:
    """A draw from N(x0_hat, r^2 I) given y = A x_0 + std n, by perturbing and solving (Papandreou and Yuille 2010).

    x' = x0_hat + r z, then x' + r^2 A^T (r^2 A A^T + std^2 I)^-1 (y + std n - A x'): mean and covariance are right.

    Args:
        operator: A.
        y: measurements, [B, *measured].
        std: standard deviation of their noise: a number or [B]; may be traced.

    Returns:
        the sampler, for `daps`.

    Raises:
        ValueError: y or std as for `tmpd`.
    """
    check_operator(operator, y)
    check_std(std)

    def sample_x0(key: Array, x0: Array, r: Array, level: Level) -> Array:
        noise2 = variance_of(std, y)
        x0 = x0 + r * normal_like(fold_in(key, 0), x0)
        noise = normal_like(fold_in(key, 1), y.real)
        if jnp.iscomplexobj(y):  # std is that of each part
            noise = jax.lax.complex(noise, normal_like(fold_in(key, 2), y.real))
        away = y + times(jnp.sqrt(noise2), noise) - measure(operator, y, x0)
        square = jnp.square(r)
        # r is a number, or one an example, for x; the solve's has the axes of y.
        w = operator.solve(away, square if square.ndim == 0 else square.reshape(-1, *(1,) * (y.ndim - 1)), noise2)
        return x0 + square * operator.adjoint(w)

    return sample_x0


def langevin(
    loss: Callable[[Array], Array], curvature: float | Array, *, steps: int = 100, step_size: float | Array = 0.1
) -> X0Sampler:
    """Langevin dynamics for N(x0_hat, r^2 I) exp(-loss(x_0)), from x0_hat (as in DAPS, algorithm 1).

    x - e grad + sqrt(2 e) z with e = step_size / (1 / r^2 + curvature): smaller steps have a smaller error, and more of
    them are needed.

    Args:
        loss: x_0 [B, ...] -> [B], the negative log-likelihood of a measurement, of each example alone.
        curvature: its largest second derivative, e.g. 1 / std^2; may be traced.
        steps: number of steps.
        step_size: in units of the stiffest direction's variance; may be traced.

    Returns:
        the sampler, for `daps`.

    Raises:
        ValueError: `loss` is not a function, curvature < 0, steps < 1, or step_size < 0; when called, a loss that is
            not [B].
    """
    check_function("loss", loss, "(x0) -> [B]")
    check_number("curvature", curvature, low=0)
    check_number("step_size", step_size, low=0)
    check_count("steps", steps)

    def sample_x0(key: Array, x0: Array, r: Array, level: Level) -> Array:
        gradient = jax.grad(lambda x: sum_of_examples("loss", loss(x), x))
        # e / r^2, which is finite at r = 0, where x_0 is x0_hat.
        pull = jnp.asarray(step_size, x0.dtype) / (1 + jnp.square(r) * jnp.asarray(curvature, x0.dtype))
        e = jnp.square(r) * pull

        def body(x: Array, i: Array) -> tuple[Array, None]:
            drift = pull * (x - x0) + e * gradient(x)
            return x - drift + safe_sqrt(2 * e) * normal_like(fold_in(key, i), x), None

        return jax.lax.scan(body, x0, jnp.arange(steps))[0]

    return sample_x0
