"""What a model makes: one file for each kind, each of which returns a Medium."""

from jaxdiff.media.base import Evaluator, Medium, Report, Samples

__all__ = ["Evaluator", "Medium", "Report", "Samples"]
