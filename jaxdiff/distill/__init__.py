"""Training of few-step models, from a teacher or from data: one file for each family, whose functions return a `Loss`.

The losses are given ((params, Context), key, batch): use `given=distill.context()` in `train.make_step`.
"""

from jaxdiff.distill.adversarial import (
    Adversary,
    Features,
    adversarial_diffusion,
    few_step_generator,
    latent_adversarial_diffusion,
    network_features,
)
from jaxdiff.distill.base import Context, Distance, Teacher, TimePairs, context, teacher
from jaxdiff.distill.consistency import consistency
from jaxdiff.distill.continuous import continuous_consistency
from jaxdiff.distill.critics import (
    AdversarialLoss,
    Generator,
    Penalty,
    difference_penalty,
    gradient_penalty,
    hinge,
    relativistic,
    softplus,
)
from jaxdiff.distill.distances import adaptive, norm, perceptual, pseudo_huber, squared
from jaxdiff.distill.distribution_matching import distribution_matching, grid_times
from jaxdiff.distill.flow_maps import eulerian, lagrangian, semigroup
from jaxdiff.distill.gan import alternate, gan
from jaxdiff.distill.guidance_distillation import guidance_distillation, random_guidance
from jaxdiff.distill.mean_flow import mean_flow
from jaxdiff.distill.pairs import ct_decay, ct_grid, ect_pairs, grid_pairs, ict_grid, log_normal_pairs
from jaxdiff.distill.preference import preference_loss
from jaxdiff.distill.progressive import progressive, student_grid
from jaxdiff.distill.rectified_flow import reflow, straightness, transport_cost
from jaxdiff.distill.reward import reward_loss
from jaxdiff.distill.shortcut import shortcut
from jaxdiff.distill.sorted_pairs import sorted_pairs
from jaxdiff.distill.trajectory import trajectory

__all__ = [
    "AdversarialLoss",
    "Adversary",
    "Context",
    "Distance",
    "Features",
    "Generator",
    "Penalty",
    "Teacher",
    "TimePairs",
    "adaptive",
    "adversarial_diffusion",
    "alternate",
    "consistency",
    "context",
    "continuous_consistency",
    "ct_decay",
    "ct_grid",
    "difference_penalty",
    "distribution_matching",
    "ect_pairs",
    "eulerian",
    "few_step_generator",
    "gan",
    "gradient_penalty",
    "grid_pairs",
    "grid_times",
    "guidance_distillation",
    "hinge",
    "ict_grid",
    "lagrangian",
    "latent_adversarial_diffusion",
    "log_normal_pairs",
    "mean_flow",
    "network_features",
    "norm",
    "perceptual",
    "preference_loss",
    "progressive",
    "pseudo_huber",
    "random_guidance",
    "reflow",
    "relativistic",
    "reward_loss",
    "semigroup",
    "shortcut",
    "softplus",
    "sorted_pairs",
    "squared",
    "straightness",
    "student_grid",
    "teacher",
    "trajectory",
    "transport_cost",
]
