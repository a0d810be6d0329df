"""Guidance by the gradient of a log-probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number, factory
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, scale_at, split_variance, sum_of_examples
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser

__all__ = ["classifier", "classifier_gradient"]

LogProb = Callable[[Array, Level], Array]  # (x_t, level) -> [B]


def classifier(denoise: Denoiser, log_prob: LogProb, scale: Scale = 1.0) -> Denoiser:
    """Classifier guidance: score + scale grad log p(y | x_t) (Dhariwal and Nichol 2021, arXiv:2105.05233, eq. 14).

    By Tweedie's formula, x0_hat + scale (sigma^2 / alpha) grad log p(y | x_t), for any solver; there is no guidance at
    pure noise (alpha = 0). `solvers.ddpm` with a `classifier_gradient` moves the mean by the model's variance instead,
    as in the paper; for short steps both are equal.

    Args:
        denoise: the denoiser to guide.
        log_prob: (x_t, level) -> [B], log p(y | x_t) of each example, of a classifier trained on noisy data.
        scale: as for `cfg`; 0 is off.

    Returns:
        the guided denoiser.

    Raises:
        ValueError: `denoise` or `log_prob` is not a function, or a scale as for `cfg`; when called, a log_prob that
            is not [B].
    """
    check_denoisers(denoise=denoise)
    gradient = classifier_gradient(log_prob, scale)

    def guided(x: Array, level: Level) -> Any:
        at = level.expand_to(x)
        factor = jnp.where(at.alpha > 0, jnp.square(at.sigma) / jnp.where(at.alpha > 0, at.alpha, 1), 0)
        x0, *variance = split_variance(denoise(x, level))
        return join_variance(x0 + factor * gradient(x, level), *variance)

    return guided


@factory
def classifier_gradient(log_prob: LogProb, scale: Scale = 1.0) -> Callable[[Array, Level], Array]:
    """scale grad log p(y | x_t), for the mean of `solvers.ddpm` (Dhariwal and Nichol 2021, algorithm 1).

    Args:
        log_prob, scale: as for `classifier`.

    Returns:
        (x_t, level) -> like x_t.

    Raises:
        ValueError: `log_prob` is not a function, or a scale as for `cfg`; when called, a log_prob that
            is not [B].
    """
    if not callable(log_prob):
        raise ValueError(f"log_prob must be a function (x_t, level) -> [B], got {log_prob!r:.80}")
    check_number("scale", scale)

    def gradient(x: Array, level: Level) -> Array:
        return scale_at(scale, x, level) * jax.grad(lambda x: sum_of_examples("log_prob", log_prob(x, level), x))(x)

    return gradient
