"""Guidance by several conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, join_variance, scale_at, split_variance
from jaxdiff.levels import Level
from jaxdiff.types import Denoiser

__all__ = ["compose"]


def compose(uncond: Denoiser, conds: Sequence[Denoiser], scales: Sequence[Scale] | Array) -> Denoiser:
    """Composed conditions: uncond + sum_i scale_i (cond_i - uncond) (Liu et al. 2022, arXiv:2206.01714).

    The score is that of p(x_t) prod_i (p(x_t | c_i) / p(x_t))^scale_i: a conjunction of conditions with positive
    scales, and a negation of those with negative scales (negative prompts).

    Args:
        uncond: the denoiser with the null condition.
        conds: the denoisers with one condition each.
        scales: one scale per condition, each as for `cfg`; or an array [K] or [K, B].

    Returns:
        the guided denoiser, K + 1 evaluations per call; a learned variance is that of the first of `conds`.

    Raises:
        ValueError: no conditions, a number of scales that differs from theirs, or a scale as for `cfg`.
    """
    conds, scales = tuple(conds), tuple(scales)
    if not conds or len(conds) != len(scales):
        raise ValueError(
            f"compose needs at least one condition and a scale for each, got {len(conds)} conditions and "
            f"{len(scales)} scales"
        )
    check_denoisers(uncond=uncond, **{f"conds[{i}]": cond for i, cond in enumerate(conds)})
    for i, scale in enumerate(scales):
        check_number(f"scales[{i}]", scale)

    def denoise(x: Array, level: Level) -> Any:
        plain = split_variance(uncond(x, level))[0]
        outputs = [split_variance(cond(x, level)) for cond in conds]
        terms = (scale_at(w, x, level) * (a[0] - plain) for w, a in zip(scales, outputs, strict=True))
        return join_variance(sum(terms, plain), *outputs[0][1:])

    return denoise
