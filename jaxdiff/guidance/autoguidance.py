"""Guidance by a weaker version of the model, which needs no condition."""

from __future__ import annotations

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers
from jaxdiff.guidance.classifier_free import cfg
from jaxdiff.types import Denoiser

__all__ = ["autoguidance", "perturbed_attention"]


def autoguidance(main: Denoiser, guide: Denoiser, scale: Scale) -> Denoiser:
    """Autoguidance: guide + scale (main - guide), away from a weaker model (Karras et al. 2024, arXiv:2406.02507).

    Args:
        main: the denoiser to guide.
        guide: a smaller or less trained model of the same data and condition.
        scale: as for `cfg`; 1 is off.

    Returns:
        the guided denoiser, one evaluation of each per call; a learned variance is the main model's.

    Raises:
        ValueError: as for `cfg`.
    """
    check_denoisers(main=main, guide=guide)
    return cfg(main, guide, scale)


def perturbed_attention(denoise: Denoiser, perturbed: Denoiser, scale: Scale) -> Denoiser:
    """Perturbed-attention guidance: D + scale (D - D_perturbed) (Ahn et al. 2024, arXiv:2403.17377).

    The perturbed network has the same parameters, and the identity in place of self-attention maps:
    `networks.as_apply(module.clone(identity_attention=("mid_block",)))`.

    Args:
        denoise: the denoiser to guide; may already be guided.
        perturbed: the denoiser of the perturbed network.
        scale: as for `cfg`, but 0 is off.

    Returns:
        the guided denoiser; a learned variance is that of `denoise`.

    Raises:
        ValueError: as for `cfg`.
    """
    check_denoisers(denoise=denoise, perturbed=perturbed)
    check_number("scale", scale)
    return cfg(denoise, perturbed, (lambda level: 1 + scale(level)) if callable(scale) else 1 + scale)
