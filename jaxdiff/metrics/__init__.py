"""Metrics: pure functions of features that measure the fidelity and the coverage of samples."""

from jaxdiff.metrics.classification import Accuracy, accuracy
from jaxdiff.metrics.coverage import PrecisionRecall, precision_recall
from jaxdiff.metrics.distances import KernelDistance, frechet, kernel_distance, sliced_wasserstein
from jaxdiff.metrics.report import evaluate, format_report
from jaxdiff.metrics.statistics import Statistics

__all__ = [
    "Accuracy",
    "KernelDistance",
    "PrecisionRecall",
    "Statistics",
    "accuracy",
    "evaluate",
    "format_report",
    "frechet",
    "kernel_distance",
    "precision_recall",
    "sliced_wasserstein",
]
