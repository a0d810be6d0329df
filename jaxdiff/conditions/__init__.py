"""What one may ask of a model: one file for each kind, each of which returns a Condition."""

from jaxdiff.conditions import hints
from jaxdiff.conditions.base import Cond, Condition
from jaxdiff.conditions.guidance_scale import guidance_scale
from jaxdiff.conditions.hint import hint, noised
from jaxdiff.conditions.label import label
from jaxdiff.conditions.none import none
from jaxdiff.conditions.picture import picture
from jaxdiff.conditions.prompts import prompts
from jaxdiff.conditions.text import text

__all__ = [
    "Cond",
    "Condition",
    "guidance_scale",
    "hint",
    "hints",
    "label",
    "noised",
    "none",
    "picture",
    "prompts",
    "text",
]
