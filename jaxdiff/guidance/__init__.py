"""Guidance: functions from denoisers to a denoiser."""

from jaxdiff.guidance.apg import apg, apg_momentum
from jaxdiff.guidance.autoguidance import autoguidance, perturbed_attention
from jaxdiff.guidance.cfg_pp import cfg_pp
from jaxdiff.guidance.classifier import classifier, classifier_gradient
from jaxdiff.guidance.classifier_free import cfg, cfg_batched, drop_condition
from jaxdiff.guidance.compose import compose
from jaxdiff.guidance.interval import interval
from jaxdiff.guidance.rescale import rescale
from jaxdiff.guidance.threshold import clip, dynamic_threshold
from jaxdiff.guidance.zero_star import cfg_zero_star

__all__ = [
    "apg",
    "apg_momentum",
    "autoguidance",
    "cfg",
    "cfg_batched",
    "cfg_pp",
    "cfg_zero_star",
    "classifier",
    "classifier_gradient",
    "clip",
    "compose",
    "drop_condition",
    "dynamic_threshold",
    "interval",
    "perturbed_attention",
    "rescale",
]
