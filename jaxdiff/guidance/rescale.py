"""Guidance rescale: guidance that keeps the conditional model's standard deviation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff import parameterize
from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, norm, scale_at, split_variance
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser, Prediction

__all__ = ["rescale"]


def rescale(
    guide: Callable[[Denoiser], Denoiser], cond: Denoiser, phi: Scale, prediction: Prediction = parameterize.x0
) -> Denoiser:
    """Guidance rescale: move each example's std to the conditional model's (Lin et al. 2023, sec. 3.4).

    F_guided (phi std(F_cond) / std(F_guided) + 1 - phi), with F given by `prediction` (arXiv:2305.08891). The published
    method and its implementations rescale the network's output: pass the network's prediction to do the same. `guide`
    is a function of the conditional denoiser, so that the guidance and the std share its evaluation.

    Args:
        guide: from the conditional denoiser to the guided one, e.g. `lambda cond: cfg(cond, uncond, 7.5)`.
        cond: the conditional denoiser.
        phi: share of the rescaled output, in [0, 1]; a number, [B], or a function of the level; may be traced. 0 is
            off.
        prediction: the prediction whose std is kept, e.g. `parameterize.v`; x_0 by default.

    Returns:
        the denoiser, as many evaluations per call as guide(cond); a learned variance is the guided one's.

    Raises:
        ValueError: phi is a number outside [0, 1]; guide is not a function of the conditional denoiser.
    """
    check_denoisers(cond=cond)
    check_number("phi", phi, low=0, high=1)
    _check_guide(guide, cond)

    def denoise(x: Array, level: Level) -> Any:
        known = cond(x, level)
        x0, *variance = split_variance(guide(lambda x, level: known)(x, level))
        # x0 - skip x = out F: out cancels in the quotient of the two stds, and may be 0.
        rest = parameterize.scalings(prediction, level, x).skip.astype(x.dtype) * x
        std, std_cond = _std(x0 - rest), _std(split_variance(known)[0] - rest)
        change = jnp.where(std > 0, std_cond / jnp.where(std > 0, std, 1), 1) - 1
        return join_variance(x0 + scale_at(phi, x, level) * change * (x0 - rest), *variance)

    return denoise


def _check_guide(guide: Callable[[Denoiser], Denoiser], cond: Denoiser) -> None:
    try:
        check_denoisers(**{"guide(cond)": guide(cond)})
    except TypeError as error:
        raise ValueError(
            "guide must be a function of the conditional denoiser, e.g. lambda cond: cfg(cond, uncond, 7.5), "
            f"got {guide!r:.80}"
        ) from error


def _std(x: Array) -> Array:
    # Up to a factor that cancels in the quotient.
    return norm(x - jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True))
