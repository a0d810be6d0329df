"""Training of few-step models, from a teacher or from data: one file for each family, whose functions return a `Loss`.

The losses are given ((params, Context), key, batch): use `given=distill.context()` in `train.make_step`.
"""

from jaxdiff.distill.base import Context, Distance, Teacher, TimePairs, context, teacher
from jaxdiff.distill.distances import adaptive, norm, perceptual, pseudo_huber, squared

__all__ = [
    "Context",
    "Distance",
    "Teacher",
    "TimePairs",
    "adaptive",
    "context",
    "norm",
    "perceptual",
    "pseudo_huber",
    "squared",
    "teacher",
]
