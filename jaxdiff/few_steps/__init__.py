"""Few-step models of a trained run: the teacher, and the methods of `jaxdiff.distill` as parts of an experiment."""

from jaxdiff.few_steps.method import Method
from jaxdiff.few_steps.methods import METHODS, choose
from jaxdiff.few_steps.parts import experiment_of
from jaxdiff.few_steps.teacher import Teacher, load_teacher

__all__ = ["METHODS", "Method", "Teacher", "choose", "experiment_of", "load_teacher"]
