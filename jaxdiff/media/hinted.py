"""Images that were asked for by their edges: measured by how many of these they have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxdiff.conditions import Condition
from jaxdiff.data.hints import edges
from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.metrics import edge_f1

__all__ = ["THRESHOLD", "edge_scores", "hinted"]

THRESHOLD = 0.6  # of `data.edges` in [0, 1]; the edges of two clothes of one class then have an F1 of 0.27


def hinted(medium: Medium) -> Medium:
    """Images whose evaluation also says how well they have the edges in cond["hint"].

    Args:
        medium: images in [-1, 1].

    Returns:
        the medium; its report has "edge_f1" and, where there are enough, of other pictures' edges of the same class
        "edge_f1_other".
    """

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        inner = None if medium.evaluator is None else medium.evaluator(run, condition)

        def measure(samples: Samples) -> Report:
            report = Report({}, "") if inner is None else inner(samples)
            x, hints = samples.x, samples.cond["hint"]
            label = samples.cond.get("label", np.arange(len(x)) % max(condition.choices, 1))
            order = np.argsort(label, kind="stable")
            same = np.diff(label[order]) == 0
            same &= np.any(np.diff(hints[order], axis=0), axis=tuple(range(1, hints.ndim)))  # but not of one picture
            values = {"edge_f1": float(edge_scores(x, hints).mean())}
            text = f"edges: F1 {values['edge_f1']:.3f}"
            if same.any():
                values["edge_f1_other"] = float(edge_scores(x[order[1:][same]], hints[order[:-1][same]]).mean())
                text += f", {values['edge_f1_other']:.3f} of another picture's"
            return Report(report.values | values, f"{report.text}\n{text}".strip())

        return measure

    return replace(medium, evaluator=evaluator)


def edge_scores(x: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """The F1 score of the edges of each image.

    Args:
        x: [N, H, W, C] in [-1, 1].
        hints: [N, H, W, C'] in [0, 1], from `data.edges`.

    Returns:
        [N].
    """
    whites = np.clip(np.round(127.5 * (np.asarray(x) + 1)), 0, 255).astype(np.uint8)
    own = np.stack([edges(each)[..., 0] for each in whites]) / 255
    return edge_f1(own, np.asarray(hints)[..., 0], threshold=THRESHOLD)
