"""UniPC (Zhao et al. 2023): a predictor and a corrector of any order, with one evaluation per step."""

from __future__ import annotations

from jaxdiff.checks import factory
from jaxdiff.levels import Level
from jaxdiff.solvers.adams import adams
from jaxdiff.solvers.base import Solver

__all__ = ["unipc"]


@factory
def unipc(
    order: int = 3, variant: str = "bh2", *, corrector: bool = True, lower_order_final: Level | None = None
) -> Solver:
    """UniPC-p: UniP-p predicts, UniC-p corrects at the beginning of the next step (Zhao et al. 2023, arXiv:2302.04867).

    With data prediction (x0_hat). Solving the paper's linear system is polynomial interpolation, in which B(h) cancels.
    It matters in the first steps only, and for order 1 (UniC) and 2 (UniP), where the paper replaces the system by 1/2.

    Args:
        order: p, the number of evaluations in the predictor's polynomial; the corrector's has one more. Orders above 4
            gain little: high-degree polynomials oscillate.
        variant: "bh1" for B(h) = h, "bh2" for B(h) = exp(h) - 1.
        corrector: whether to correct. Without it bh2 of order 2 is `dpmpp_2m`.
        lower_order_final: as for `dpmpp_2m`.

    Returns:
        a solver of order p + 1 (p without a corrector) with one evaluation per step. The first steps are of a lower
        order, and the step to sigma = 0 is of order 1; the last step is not corrected.

    Raises:
        ValueError: order below 1, or an unknown variant.
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order of unipc must be an integer of at least 1, got {order}")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be bh1 or bh2, got {variant!r}")
    second_moment = {"bh1": "half", "bh2": "midpoint"}[variant]
    points, reached = (order + 1, order + 1) if corrector else (0, order)
    return adams(order, points, second_moment=second_moment, order=reached, lower_order_final=lower_order_final)
