"""Metrics: pure functions of features that measure the fidelity and the coverage of samples."""

from jaxdiff.metrics.classification import Accuracy, accuracy
from jaxdiff.metrics.coverage import ModeCoverage, PrecisionRecall, mode_coverage, precision_recall
from jaxdiff.metrics.distances import KernelDistance, frechet, kernel_distance, sliced_wasserstein
from jaxdiff.metrics.edges import edge_f1
from jaxdiff.metrics.fidelity import psnr, ssim
from jaxdiff.metrics.report import evaluate, format_report
from jaxdiff.metrics.retrieval import recall_at_1
from jaxdiff.metrics.statistics import Statistics

__all__ = [
    "Accuracy",
    "KernelDistance",
    "ModeCoverage",
    "PrecisionRecall",
    "Statistics",
    "accuracy",
    "edge_f1",
    "evaluate",
    "format_report",
    "frechet",
    "kernel_distance",
    "mode_coverage",
    "precision_recall",
    "psnr",
    "recall_at_1",
    "sliced_wasserstein",
    "ssim",
]
